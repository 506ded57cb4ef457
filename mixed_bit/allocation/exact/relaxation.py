"""The linear relaxation: multipliers for the proof, and a good first choice.

SciPy's HiGHS resolves about nine decimal digits, so the relaxation is solved for the groups with
the most at stake alone, the rest at their cheapest; then again for what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_array, vstack

from mixed_bit.allocation.exact.knapsack import Choice, Knapsack, fill

Floats = NDArray[np.float64]

_TIER_BITS = 26
_DIGITS = 60
_SHARE = 1e-6
_DIVIDED = 4
_MULTIPLIER_BITS = 70


@dataclass(frozen=True)
class Multipliers:
    """Sensitivity of the budgets: `weights[j] / 2^shift` of value per unit of cost j."""

    weights: tuple[int, ...]
    shift: int

    def worth(self, value: int, costs: Sequence[int]) -> int:
        """2^shift · value less the costs at these prices."""
        spent = sum(w * c for w, c in zip(self.weights, costs, strict=True))
        return (value << self.shift) - spent


@dataclass(frozen=True)
class Relaxed:
    """Solution of the relaxation: `shares[i]` of each open option of the i-th group."""

    shares: list[NDArray[np.float64]]
    multipliers: Multipliers


def tier(problem: Knapsack, groups: Sequence[int]) -> int:
    """How many of `groups`, the largest stake first, one relaxation can resolve."""
    least = problem.stake(groups[0]) >> _TIER_BITS
    return next((i for i, g in enumerate(groups) if problem.stake(g) < least), len(groups))


def relax(problem: Knapsack, groups: Sequence[int], room: Sequence[int]) -> Relaxed | None:
    """Solve the relaxation of some groups.

    Args:
        problem: its open options.
        groups: indices of the groups.
        room: what is left of every budget for these groups.

    Returns:
        None where HiGHS finds no solution.
    """
    residuals = [problem.residuals(g) for g in groups]
    widest = max(max(row) - min(row) for row in residuals)
    unit = max(widest.bit_length() - _DIGITS, 0)
    gains = np.array([float((v - min(row)) >> unit) for row in residuals for v in row])
    scale = max(float(gains.max()), 1.0)
    counts = [len(problem.options[g]) for g in groups]
    costs, spare, units = _cost_rows(problem, groups, room)
    result = _solve(-gains / scale, counts, costs, spare, problem.base)
    if result is None:
        return None
    shares, duals = result
    prices = [
        Fraction(float(dual)) * Fraction(scale) * 2**unit / cost_unit
        for dual, cost_unit in zip(duals, units, strict=True)
    ]
    for j, price in enumerate(problem.base):
        prices[j] = max(prices[j] + price, Fraction(0))
    return Relaxed(np.split(shares, np.cumsum(counts)[:-1]), _whole(prices))


def _solve(
    prices: Floats, counts: Sequence[int], costs: Floats, spare: Floats, base: Sequence[int]
) -> tuple[Floats, Floats] | None:
    """Shares and the budgets' duals; budgets with a base price are spent to the end."""
    owner = np.repeat(np.arange(len(counts)), counts)
    one = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    exact = np.array([*map(bool, base), *[False] * (len(costs) - len(base))], dtype=bool)
    result = linprog(
        prices,
        A_ub=costs[~exact],
        b_ub=spare[~exact],
        A_eq=vstack([one, csr_array(costs[exact])]),
        b_eq=np.concatenate([np.ones(len(counts)), spare[exact]]),
        bounds=(0, 1),
        method="highs-ds",
    )
    if result.x is None:
        return None
    duals = np.zeros(len(costs))
    duals[~exact] = np.maximum(-result.ineqlin.marginals, 0.0)
    duals[exact] = -result.eqlin.marginals[len(counts) :]
    return result.x, duals


def _cost_rows(
    problem: Knapsack, groups: Sequence[int], room: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[int]]:
    """Costs beyond each group's least, and the room left for them, in units of the largest."""
    rows, spare, units = [], [], []
    for cost, left in zip(problem.costs, room, strict=True):
        least = [min(cost[g][k] for k in problem.options[g]) for g in groups]
        row = [
            cost[g][k] - low
            for g, low in zip(groups, least, strict=True)
            for k in problem.options[g]
        ]
        unit = max(max(row), 1)
        rows.append([value / unit for value in row])
        spare.append((left - sum(least)) / unit)
        units.append(unit)
    return np.array(rows), np.array(spare), units


def _whole(prices: Sequence[Fraction]) -> Multipliers:
    """Rounded to whole numbers of one common scale, 70 bits for the smallest."""
    sizes = [p.numerator.bit_length() - p.denominator.bit_length() for p in prices if p]
    shift = max(0, _MULTIPLIER_BITS - min(sizes, default=0))
    return Multipliers(tuple(int(price * 2**shift) for price in prices), shift)


def round_down(problem: Knapsack, groups: Sequence[int], relaxed: Relaxed) -> dict[int, int]:
    """Each group's mean column under its shares, rounded down to an open one."""
    rounded = {}
    for g, shares in zip(groups, relaxed.shares, strict=True):
        options = problem.options[g]
        mean = float(np.dot(shares, options)) + 1e-6
        rounded[g] = max((k for k in options if k <= mean), default=options[0])
    return rounded


def roundings(problem: Knapsack, groups: Sequence[int], relaxed: Relaxed) -> list[dict[int, int]]:
    """The relaxation rounded, its divided groups down and up in every combination of a few."""
    down = round_down(problem, groups, relaxed)
    divided = [
        (g, [k for k, x in zip(problem.options[g], shares, strict=True) if x > _SHARE])
        for g, shares in zip(groups, relaxed.shares, strict=True)
        if shares.max() < 1 - _SHARE
    ][:_DIVIDED]
    names = [g for g, _ in divided]
    combinations = product(*(columns for _, columns in divided))
    return [down, *({**down, **dict(zip(names, c, strict=True))} for c in combinations if c)]


def round_relaxation(problem: Knapsack) -> Choice:
    """The relaxation, rounded down and filled up again; it may break budgets only if
    the narrowest widths break them too.

    The groups with the most at stake are settled first, then the next with what is left.
    """
    choice = [problem.cheapest(g) for g in range(len(problem.options))]
    groups = sorted(range(len(choice)), key=lambda g: (-problem.stake(g), g))
    while groups and problem.stake(groups[0]):
        count = tier(problem, groups)
        raised = _relaxed_choice(problem, choice, groups[:count])
        if problem.fits(raised):
            choice = raised
        choice = fill(problem, choice, groups[:count])
        groups = groups[count:]
    return choice


def _relaxed_choice(problem: Knapsack, choice: Choice, groups: Sequence[int]) -> Choice:
    room = [
        limit - used + sum(cost[g][choice[g]] for g in groups)
        for limit, used, cost in zip(
            problem.limits, problem.used(choice), problem.costs, strict=True
        )
    ]
    relaxed = relax(problem, groups, room)
    rounded = {} if relaxed is None else round_down(problem, groups, relaxed)
    return [rounded.get(g, k) for g, k in enumerate(choice)]
