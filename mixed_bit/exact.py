"""Proof of optimality in whole numbers: bounds, fixing, and a search over what they leave open.

The program is a multiple-choice knapsack. With multipliers λ ≥ 0 on the budgets,
Σ_g max_k (value − λ·cost) + λ·limit bounds every solution from above, whatever λ. An option whose
use lowers that bound to the incumbent's value can be dropped. A dynamic program over the groups
that still have a choice keeps, per cost, the best value, and drops what the linear relaxation of
the remaining groups cannot lift above the incumbent. All arithmetic is exact, so prices may differ
by a billionth or by a hundred orders of magnitude.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cmp_to_key
from itertools import accumulate, pairwise
from typing import NamedTuple

Choice = list[int]
_GRID = 2**48
_GREEDY_EVERY = 8


class State(NamedTuple):
    """Choices for the first groups: their value, the last of them, and the state before it."""

    value: int
    option: int = -1
    previous: State | None = None


@dataclass
class Knapsack:
    """Whole-number form: `values[g][k]` to maximise, `costs[r][g][k]` under `limits[r]`.

    `options[g]` are the columns of group g that are still open.
    """

    values: list[list[int]]
    costs: list[list[list[int]]]
    limits: list[int]
    options: list[list[int]]

    def value(self, choice: Sequence[int]) -> int:
        """Value of one column per group."""
        return sum(row[k] for row, k in zip(self.values, choice, strict=True))

    def fits(self, choice: Sequence[int]) -> bool:
        """Whether every budget is kept."""
        return all(
            sum(row[k] for row, k in zip(cost, choice, strict=True)) <= limit
            for cost, limit in zip(self.costs, self.limits, strict=True)
        )


def improve(problem: Knapsack, choice: Choice) -> Choice:
    """Raise single groups, the best value first, as long as the budgets allow."""
    choice = list(choice)
    room = [
        limit - sum(row[k] for row, k in zip(cost, choice, strict=True))
        for cost, limit in zip(problem.costs, problem.limits, strict=True)
    ]
    moved = True
    while moved:
        moved = False
        gains = [
            (problem.values[g][k] - problem.values[g][choice[g]], g, k)
            for g, options in enumerate(problem.options)
            for k in options
            if problem.values[g][k] > problem.values[g][choice[g]]
        ]
        for _, g, k in sorted(gains, reverse=True):
            if problem.values[g][k] <= problem.values[g][choice[g]]:
                continue
            extra = [cost[g][k] - cost[g][choice[g]] for cost in problem.costs]
            if all(e <= r for e, r in zip(extra, room, strict=True)):
                room = [r - e for r, e in zip(room, extra, strict=True)]
                choice[g], moved = k, True
    return choice


def prove(problem: Knapsack, incumbent: Choice, max_states: int = 200_000) -> tuple[Choice, bool]:
    """The best choice, and whether it is proven (not so where the search grew too large).

    Args:
        problem: the program; its open options are narrowed in place.
        incumbent: a choice that fits.
        max_states: the largest number of partial solutions to keep at a time.
    """
    multipliers = _multipliers(problem)
    surrogate = _surrogate(problem, multipliers)
    best = _drop_options(problem, surrogate, incumbent)
    while best is not None and any(len(options) > 1 for options in problem.options):
        better, proven = _search(problem, surrogate, best, max_states)
        return better, proven
    return (incumbent if best is None else best), True


def _multipliers(problem: Knapsack) -> list[Fraction]:
    """Weights of the budgets, chosen so that the bound of their weighted sum is low.

    For one budget there is nothing to choose. For more, each weight in turn is searched on a
    logarithmic grid, which is enough for a good bound; any weights give a valid one.
    """
    base = [Fraction(1, max(limit, 1)) for limit in problem.limits]
    if len(base) == 1:
        return [Fraction(1)]
    weights = list(base)
    for _ in range(2):
        for index in range(len(weights)):
            tried = []
            for power in range(-12, 13):
                trial = list(weights)
                trial[index] = base[index] * (Fraction(2) ** power if power > -12 else 0)
                if any(trial):
                    row, limit = _surrogate(problem, trial)
                    bound = _Relaxation.build(problem, row, range(len(row))).bound(limit)
                    tried.append((bound if bound is not None else -1, trial))
            weights = min(tried, key=lambda pair: pair[0])[1]
    return weights


def _surrogate(problem: Knapsack, weights: Sequence[Fraction]) -> tuple[list[list[int]], int]:
    """One budget that every solution keeps: the weighted sum of all, in whole numbers."""
    largest = max(weights)
    whole = [math.floor(weight / largest * _GRID) for weight in weights]
    if len(whole) == 1:
        whole = [1]
    rows = [
        [
            sum(w * cost[g][k] for w, cost in zip(whole, problem.costs, strict=True))
            for k in range(n)
        ]
        for g, n in enumerate(map(len, problem.values))
    ]
    return rows, sum(w * limit for w, limit in zip(whole, problem.limits, strict=True))


def _drop_options(
    problem: Knapsack, surrogate: tuple[list[list[int]], int], incumbent: Choice
) -> Choice | None:
    """Close the options that cannot beat the incumbent; None where nothing can."""
    row, limit = surrogate
    relaxation = _Relaxation.build(problem, row, range(len(row)))
    gain, cost = relaxation.critical_step(limit)
    reduced = [
        {k: problem.values[g][k] * cost - gain * row[g][k] for k in options}
        for g, options in enumerate(problem.options)
    ]
    tops = [max(values.values()) for values in reduced]
    excess = sum(tops) + gain * limit - problem.value(incumbent) * cost
    for g, values in enumerate(reduced):
        problem.options[g] = [k for k, value in values.items() if tops[g] - value < excess]
        if not problem.options[g]:
            return None
    return incumbent


class _Relaxation:
    """Linear relaxation of some groups under one budget: best value as a function of the room."""

    def __init__(self, base_cost: int, base_value: int, steps: list[tuple[int, int]]) -> None:
        self._base_cost, self._base_value = base_cost, base_value
        self._steps = steps
        self._costs = list(accumulate((cost for _, cost in steps), initial=0))
        self._values = list(accumulate((gain for gain, _ in steps), initial=0))

    @classmethod
    def build(cls, problem: Knapsack, row: list[list[int]], groups: Sequence[int]) -> _Relaxation:
        base_cost = base_value = 0
        steps: list[tuple[int, int]] = []
        for g in groups:
            points = [(row[g][k], problem.values[g][k]) for k in problem.options[g]]
            hull = _upper_hull(points)
            base_cost, base_value = base_cost + hull[0][0], base_value + hull[0][1]
            steps += [(v1 - v0, c1 - c0) for (c0, v0), (c1, v1) in pairwise(hull)]
        steps.sort(key=cmp_to_key(_steeper_first))
        return cls(base_cost, base_value, steps)

    def bound(self, room: int) -> int | None:
        """No choice within `room` is worth more; None where none fits."""
        room -= self._base_cost
        if room < 0:
            return None
        index = bisect_right(self._costs, room) - 1
        value = self._base_value + self._values[index]
        if index < len(self._steps):
            gain, cost = self._steps[index]
            value += (room - self._costs[index]) * gain // cost
        return value

    def critical_step(self, room: int) -> tuple[int, int]:
        """(gain, cost) of the step that no longer fits whole; (0, 1) where all fit."""
        index = bisect_right(self._costs, room - self._base_cost) - 1
        return self._steps[index] if 0 <= index < len(self._steps) else (0, 1)


def _steeper_first(one: tuple[int, int], other: tuple[int, int]) -> int:
    """Compare (gain, cost) by gain per cost, exactly."""
    left, right = one[0] * other[1], other[0] * one[1]
    return (left < right) - (left > right)


def _upper_hull(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Corners of the least concave, increasing function above (cost, value) points."""
    hull: list[tuple[int, int]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if hull and value <= hull[-1][1]:
            continue
        while len(hull) > 1 and _is_below(hull[-2], hull[-1], (cost, value)):
            hull.pop()
        hull.append((cost, value))
    return hull


def _is_below(left: tuple[int, int], middle: tuple[int, int], right: tuple[int, int]) -> bool:
    rise, run = right[1] - left[1], right[0] - left[0]
    return (middle[1] - left[1]) * run <= rise * (middle[0] - left[0])


def _search(
    problem: Knapsack, surrogate: tuple[list[list[int]], int], incumbent: Choice, max_states: int
) -> tuple[Choice, bool]:
    """Dynamic program over the groups that still have a choice, the weightiest first."""
    order = _order(problem)
    rows, limits = list(problem.costs), list(problem.limits)
    if len(rows) > 1:
        rows, limits = [*rows, surrogate[0]], [*limits, surrogate[1]]
    settled = [(g, o[0]) for g, o in enumerate(problem.options) if len(o) == 1]
    used = tuple(sum(row[g][k] for g, k in settled) for row in rows)
    start = sum(problem.values[g][k] for g, k in settled)
    best, best_value = list(incumbent), problem.value(incumbent)
    states: dict[tuple[int, ...], State] = {used: State(start)}
    for position, group in enumerate(order):
        rest = order[position + 1 :]
        bounds = [_Relaxation.build(problem, row, rest) for row in rows]
        states = _extend(problem, states, group, rows, limits, bounds, best_value)
        if not states:
            return best, True
        if len(states) > max_states:
            return best, False
        if position % _GREEDY_EVERY == 0 or not rest:
            candidate = _complete(problem, order, position, states)
            if candidate is not None and problem.value(candidate) > best_value:
                best, best_value = candidate, problem.value(candidate)
    return best, True


def _order(problem: Knapsack) -> list[int]:
    """Groups with a choice, by what is at stake."""

    def stake(group: int) -> tuple[int, int, int]:
        values = [problem.values[group][k] for k in problem.options[group]]
        costs = [problem.costs[0][group][k] for k in problem.options[group]]
        spread = (max(values) - min(values)).bit_length()
        return -spread, -max(costs), group

    return sorted((g for g, o in enumerate(problem.options) if len(o) > 1), key=stake)


def _extend(
    problem: Knapsack,
    states: dict[tuple[int, ...], State],
    group: int,
    rows: list[list[list[int]]],
    limits: list[int],
    bounds: list[_Relaxation],
    best_value: int,
) -> dict[tuple[int, ...], State]:
    extended: dict[tuple[int, ...], State] = {}
    for used, state in states.items():
        for k in problem.options[group]:
            total = tuple(u + row[group][k] for u, row in zip(used, rows, strict=True))
            value = state.value + problem.values[group][k]
            known = extended.get(total)
            if known is not None and known.value >= value:
                continue
            if _reaches(value, total, limits, bounds, best_value):
                extended[total] = State(value, k, state)
    return _undominated(extended) if len(limits) == 1 else extended


def _reaches(
    value: int, used: tuple[int, ...], limits: list[int], bounds: list[_Relaxation], best_value: int
) -> bool:
    """Whether the relaxations let this partial choice grow beyond the incumbent."""
    for total, limit, relaxation in zip(used, limits, bounds, strict=True):
        bound = relaxation.bound(limit - total)
        if bound is None or value + bound <= best_value:
            return False
    return True


def _undominated(states: dict[tuple[int, ...], State]) -> dict[tuple[int, ...], State]:
    """Without those that cost as much as another of at least their value."""
    kept: dict[tuple[int, ...], State] = {}
    highest: int | None = None
    for used in sorted(states):
        state = states[used]
        if highest is None or state.value > highest:
            kept[used], highest = state, state.value
    return kept


def _complete(
    problem: Knapsack, order: list[int], position: int, states: dict[tuple[int, ...], State]
) -> Choice | None:
    """The most valuable partial choice filled up greedily from the cheapest options."""
    state = max(states.values(), key=lambda entry: entry.value)
    choice = [_cheapest(problem, group) for group in range(len(problem.options))]
    for group in reversed(order[: position + 1]):
        choice[group] = state.option
        if state.previous is not None:
            state = state.previous
    return improve(problem, choice) if problem.fits(choice) else None


def _cheapest(problem: Knapsack, group: int) -> int:
    return min(problem.options[group], key=lambda k: (problem.costs[0][group][k], k))
