"""The linear relaxation: multipliers for the proof, and a good first choice.

SciPy's HiGHS resolves about nine decimal digits, so the relaxation is solved for the groups with
the most at stake alone, the rest at their cheapest; then again for what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_array

from mixed_bit.knapsack import Choice, Knapsack, fill

_TIER_BITS = 26
_DIGITS = 60
_MULTIPLIER_BITS = 70


@dataclass(frozen=True)
class Multipliers:
    """Prices of the budgets: `weights[j] / 2^shift` of value per unit of cost j."""

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
    unit = max(max(problem.stake(g) for g in groups).bit_length() - _DIGITS, 0)
    gains = np.array([v for g in groups for v in _gains(problem, g, unit)])
    scale = max(float(gains.max()), 1.0)
    counts = [len(problem.options[g]) for g in groups]
    owner = np.repeat(np.arange(len(groups)), counts)
    one = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    costs, spare, units = _cost_rows(problem, groups, room)
    result = linprog(
        -gains / scale,
        A_ub=costs,
        b_ub=spare,
        A_eq=one,
        b_eq=np.ones(len(groups)),
        bounds=(0, 1),
        method="highs-ds",
    )
    if result.x is None:
        return None
    duals = np.maximum(-result.ineqlin.marginals, 0.0)
    prices = [
        Fraction(float(dual)) * Fraction(scale) * 2**unit / cost_unit
        for dual, cost_unit in zip(duals, units, strict=True)
    ]
    return Relaxed(np.split(result.x, np.cumsum(counts)[:-1]), _whole(prices))


def _gains(problem: Knapsack, group: int, unit: int) -> list[float]:
    values = [problem.values[group][k] for k in problem.options[group]]
    lowest = min(values)
    return [float((value - lowest) >> unit) for value in values]


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


def rounded_relaxation(problem: Knapsack) -> Choice:
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
