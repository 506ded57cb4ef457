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

    Attributes:
        group: Index of the group.
        columns: Columns of its k options.
        costs: What each option costs of every budget, (k, m).
        values: Exact value of each option, (k,).
        losses: How far each option lowers every upper bound, (k, F), rounded down.
        still_needed: The least that the groups after this one will spend of every budget, (m,).
    """

    group: int
    columns: tuple[int, ...]
    costs: Ints
    values: Objects
    losses: Ints
    still_needed: Ints


@dataclass(frozen=True)
class Frontier:
    """S partial choices of the first groups.

    Attributes:
        used: What each state has spent of every budget, (S, m).
        value: Exact value of each state, (S,).
        loss: How far each state's upper bounds have fallen, (S, F).
        trail: Where the states came from, one entry per group that was chosen.
    """

    used: Ints
    value: Objects
    loss: Ints
    trail: tuple[Trail, ...] = ()

    def __len__(self) -> int:
        return len(self.value)

    def extend(self, stage: Stage, limits: Ints, allowed_loss: Ints) -> Frontier:
        """Extend every state by every option of one more group that may beat the incumbent.

        Args:
            stage: The group.
            limits: Limits of the budgets, (m,).
            allowed_loss: Loss from which on a state cannot beat the incumbent, (F,).
        """
        used = self.used[:, None, :] + stage.costs[None]
        loss = self.loss[:, None, :] + stage.losses[None]
        alive = (used + stage.still_needed <= limits).all(axis=2)
        alive &= (loss < allowed_loss).all(axis=2)
        parent, option = np.nonzero(alive)
        # After the selection: adding Python integers is what takes time.
        value = self.value[parent] + stage.values[option]
        # A byte: there are fewer than 128 columns, and trails take most of the memory.
        columns = np.array(stage.columns, dtype=np.int8)[option]
        trail = (*self.trail, Trail(stage.group, parent, columns))
        return Frontier(used[alive], value, loss[alive], trail)._drop_dominated()

    def _drop_dominated(self) -> Frontier:
        """Drop the states that spend no less than another one of at least their value.

        Of the budgets after the second, only states that spend the same are compared.
        """
        if len(self) < 2:
            return self
        if self.used.shape[1] == 1:
            # Losses stand in for the exact values, which NumPy would compare one by one. A tie
            # between rounded losses may keep a state too many, never one too few.
            order = np.lexsort((self.loss[:, 0], self.used[:, 0]))
            highest = np.maximum.accumulate(self.value[order])
            keep = np.append(True, highest[1:] > highest[:-1])
            return self.take(order[keep])
        return self.take(np.array(_find_pareto(self.used, self.value), dtype=np.intp))

    def take(self, index: NDArray[np.intp]) -> Frontier:
        """Take some of the states, in the order of `index`."""
        trail = self.trail
        if trail:
            # Older entries stay whole: the last one's parents point into them.
            last = trail[-1]
            trail = (*trail[:-1], Trail(last.group, last.parent[index], last.column[index]))
        return Frontier(self.used[index], self.value[index], self.loss[index], trail)

    def keep_most_promising(self, count: int, allowed_loss: Ints) -> Frontier:
        """Keep the `count` states whose upper bounds lie highest above the incumbent."""
        # Each state by its lowest bound; a stable order, so that the answer is one everywhere.
        margin = (allowed_loss - self.loss).min(axis=1)
        return self.take(np.sort(np.argsort(-margin, kind="stable")[:count]))

    def trace_choice(self, index: int) -> dict[int, int]:
        """Trace what one state has chosen: group → column."""
        chosen = {}
        for step in reversed(self.trail):
            chosen[step.group] = int(step.column[index])
            index = int(step.parent[index])
        return chosen


@dataclass(frozen=True)
class Trail:
    """Where the states of one stage came from.

    Attributes:
        group: Index of the stage's group.
        parent: Index of each state's parent in the stage before, (S,).
        column: Column that each state chose for the group, (S,).
    """

    group: int
    parent: NDArray[np.intp]
    column: NDArray[np.int8]


def _find_pareto(used: Ints, value: Objects) -> list[int]:
    """Find the states that no other one dominates, among those that spend alike of further budgets.

    Returns:
        Indices of the states, from the highest value down.
    """
    # Better states come first, so that a state is dominated by what has been kept. Of each set of
    # further budgets that is the stairs of the two first ones: `firsts` rise where `seconds` fall.
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
