"""Partial choices, many at a time: the dynamic program's states as arrays.

A state has chosen an option for the first groups of a list. It knows what it has spent of every
budget (int64), its exact value (Python integers, for they may have thousands of bits), and for
each of F multiplier vectors how far its upper bound has fallen (int64 fixed point, rounded so that
no state is dropped wrongly).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Objects = NDArray[np.object_]


@dataclass(frozen=True)
class Stage:
    """One group as the frontier sees it: k options, m budgets, F multiplier vectors.

    `costs` (k, m), `values` (k,) exact, `losses` (k, F); `still_needed` (m,) is the least that the
    groups after this one will spend.
    """

    group: int
    columns: tuple[int, ...]
    costs: Ints
    values: Objects
    losses: Ints
    still_needed: Ints


@dataclass(frozen=True)
class Frontier:
    """S states: `used` (S, m), `value` (S,), `loss` (S, F), and the `trail` of their choices."""

    used: Ints
    value: Objects
    loss: Ints
    trail: tuple[Trail, ...] = ()

    def __len__(self) -> int:
        return len(self.value)

    def extend(self, stage: Stage, limits: Ints, allowed_loss: Ints) -> Frontier:
        """Every state with every option of one more group that may still beat the incumbent."""
        used = self.used[:, None, :] + stage.costs[None]
        loss = self.loss[:, None, :] + stage.losses[None]
        alive = (used + stage.still_needed <= limits).all(axis=2)
        alive &= (loss < allowed_loss).all(axis=2)
        parent, option = np.nonzero(alive)
        value = self.value[parent] + stage.values[option]
        columns = np.array(stage.columns, dtype=np.int8)[option]
        trail = (*self.trail, Trail(stage.group, parent, columns))
        return Frontier(used[alive], value, loss[alive], trail)._undominated()

    def _undominated(self) -> Frontier:
        """Without those that spend no less than another of at least their value.

        Of the budgets after the second, only states that spend the same are compared.
        """
        if len(self) < 2:
            return self
        if self.used.shape[1] == 1:
            order = np.lexsort((self.loss[:, 0], self.used[:, 0]))
            highest = np.maximum.accumulate(self.value[order])
            keep = np.append(True, highest[1:] > highest[:-1])
            return self.take(order[keep])
        return self.take(np.array(_pareto(self.used, self.value), dtype=np.intp))

    def take(self, index: NDArray[np.intp]) -> Frontier:
        """Some of the states, in the given order."""
        trail = self.trail
        if trail:
            last = trail[-1]
            trail = (*trail[:-1], Trail(last.group, last.parent[index], last.column[index]))
        return Frontier(self.used[index], self.value[index], self.loss[index], trail)

    def most_promising(self, count: int, allowed_loss: Ints) -> Frontier:
        """The `count` states whose upper bounds lie highest above the incumbent."""
        margin = (allowed_loss - self.loss).min(axis=1)
        return self.take(np.sort(np.argsort(-margin, kind="stable")[:count]))

    def choice(self, index: int) -> dict[int, int]:
        """Group → column of one state."""
        chosen = {}
        for step in reversed(self.trail):
            chosen[step.group] = int(step.column[index])
            index = int(step.parent[index])
        return chosen


@dataclass(frozen=True)
class Trail:
    """Where the states of one stage came from: parent state and chosen column, (S,) each."""

    group: int
    parent: NDArray[np.intp]
    column: NDArray[np.int8]


def _pareto(used: Ints, value: Objects) -> list[int]:
    """Indices of the states that no other one of the same further budgets dominates.

    From the highest value down; for each, the stairs of what was spent so far by better states.
    """
    stairs: dict[tuple[int, ...], tuple[list[int], list[int]]] = {}
    spent, worth = used.tolist(), value.tolist()
    kept = []
    for index in sorted(range(len(worth)), key=lambda i: (-worth[i], spent[i])):
        first, second, *others = spent[index]
        firsts, seconds = stairs.setdefault(tuple(others), ([], []))
        below = bisect_right(firsts, first)
        if below and seconds[below - 1] <= second:
            continue
        kept.append(index)
        start = bisect_left(firsts, first)
        stop = start
        while stop < len(seconds) and seconds[stop] >= second:
            stop += 1
        firsts[start:stop], seconds[start:stop] = [first], [second]
    return kept
