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

# The stakes of one relaxation lie within a factor of 2^26, eight of HiGHS's nine digits.
_TIER_BITS = 26
# Bits that gains keep before they become floats, which larger whole numbers may overflow.
_GAIN_BITS = 60
# HiGHS's tolerance is 1e-7: a smaller share than this is none.
_SHARE = 1e-6
# Groups to round in every combination; a vertex divides at most as many as there are budgets.
_DIVIDED = 4
# Bits of the smallest multiplier: rounding them loosens the bound by less than a float64 would.
_MULTIPLIER_BITS = 70


@dataclass(frozen=True)
class Multipliers:
    """Lagrange multipliers of the budgets: value per unit of each cost, in fixed point.

    Attributes:
        weights: Multiplier of each budget times 2^shift, not negative.
        shift: Binary places of the fixed point.
    """

    weights: tuple[int, ...]
    shift: int

    def worth(self, value: int, costs: Sequence[int]) -> int:
        """Compute 2^shift · (value less the costs at these multipliers).

        >>> Multipliers(weights=(3,), shift=1).worth(value=10, costs=[4])
        8
        """
        spent = sum(w * c for w, c in zip(self.weights, costs, strict=True))
        return (value << self.shift) - spent


@dataclass(frozen=True)
class Relaxed:
    """Solution of the relaxation.

    Attributes:
        shares: `shares[i]` is how much of each open option the i-th group takes; they sum to 1.
        multipliers: Multipliers of the budgets.
    """

    shares: list[NDArray[np.float64]]
    multipliers: Multipliers


def count_tier(problem: Knapsack, groups: Sequence[int]) -> int:
    """Count how many of `groups`, the largest stake first, one relaxation can resolve."""
    least = problem.stake(groups[0]) >> _TIER_BITS
    return next((i for i, g in enumerate(groups) if problem.stake(g) < least), len(groups))


def relax(problem: Knapsack, groups: Sequence[int], room: Sequence[int]) -> Relaxed | None:
    """Solve the relaxation of some groups.

    Args:
        problem: The program; closed options play no part.
        groups: Indices of the groups.
        room: What is left of every budget for these groups.

    Returns:
        The solution; None where HiGHS finds none.
    """
    residuals = [problem.residuals(g) for g in groups]
    widest = max(max(row) - min(row) for row in residuals)
    # A power of two, so that dividing is a shift and what HiGHS answers is scaled back exactly.
    unit = max(widest.bit_length() - _GAIN_BITS, 0)
    gains = np.array([float((v - min(row)) >> unit) for row in residuals for v in row])
    scale = max(float(gains.max()), 1.0)
    counts = [len(problem.options[g]) for g in groups]
    costs, spare, units = _build_cost_rows(problem, groups, room)
    result = _solve(-gains / scale, counts, costs, spare, problem.base)
    if result is None:
        return None
    shares, duals = result
    # Fractions: from here on the multipliers are exact numbers, and so is every bound they give.
    # It holds whatever they are; rounding in HiGHS makes it a little looser, never wrong.
    multipliers = [
        Fraction(float(dual)) * Fraction(scale) * 2**unit / cost_unit
        for dual, cost_unit in zip(duals, units, strict=True)
    ]
    for j, price in enumerate(problem.base):
        multipliers[j] = max(multipliers[j] + price, Fraction(0))
    return Relaxed(np.split(shares, np.cumsum(counts)[:-1]), _round_multipliers(multipliers))


def _solve(
    objective: Floats, counts: Sequence[int], costs: Floats, spare: Floats, base: Sequence[int]
) -> tuple[Floats, Floats] | None:
    """Solve the linear program; budgets with a base price are spent to the end.

    Args:
        objective: What to minimise, one value for each of N open options.
        counts: Number of open options of each group.
        costs: Cost of each option of every budget, m × N.
        spare: The most that may be spent of every budget, m values.
        base: Base prices of the budgets; empty where no budget has one.

    Returns:
        N shares and the m budgets' duals; None where there is no solution.
    """
    owner = np.repeat(np.arange(len(counts)), counts)
    one = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    # Gains are what is beyond the base price, and may be negative: under a mere limit such a budget
    # would not be spent.
    exact = np.array([*map(bool, base), *[False] * (len(costs) - len(base))], dtype=bool)
    result = linprog(
        objective,
        A_ub=costs[~exact],
        b_ub=spare[~exact],
        A_eq=vstack([one, csr_array(costs[exact])]),
        b_eq=np.concatenate([np.ones(len(counts)), spare[exact]]),
        bounds=(0, 1),
        # The simplex method ends at a vertex, where few groups are divided between options.
        method="highs-ds",
    )
    if result.x is None:
        return None
    duals = np.zeros(len(costs))
    # Only multipliers of at least 0 bound anything; within its tolerance HiGHS gives others too.
    duals[~exact] = np.maximum(-result.ineqlin.marginals, 0.0)
    duals[exact] = -result.eqlin.marginals[len(counts) :]
    return result.x, duals


def _build_cost_rows(
    problem: Knapsack, groups: Sequence[int], room: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[int]]:
    """Build the rows of costs beyond each group's least, in units of the largest.

    Returns:
        Costs (m × N open options), the room left for them (m values), and the m units.
    """
    rows, spare, units = [], [], []
    for cost, left in zip(problem.costs, room, strict=True):
        least = [min(cost[g][k] for k in problem.options[g]) for g in groups]
        row = [
            cost[g][k] - low
            for g, low in zip(groups, least, strict=True)
            for k in problem.options[g]
        ]
        # HiGHS's tolerances are absolute: costs of up to 1 have the digits they promise.
        unit = max(max(row), 1)
        rows.append([value / unit for value in row])
        spare.append((left - sum(least)) / unit)
        units.append(unit)
    return np.array(rows), np.array(spare), units


def _round_multipliers(exact: Sequence[Fraction]) -> Multipliers:
    """Round multipliers down to whole numbers of one scale, with 70 bits for the smallest.

    >>> _round_multipliers([Fraction(1, 4), Fraction(0)]).shift
    72
    """
    sizes = [m.numerator.bit_length() - m.denominator.bit_length() for m in exact if m]
    shift = max(0, _MULTIPLIER_BITS - min(sizes, default=0))
    return Multipliers(tuple(int(multiplier * 2**shift) for multiplier in exact), shift)


def round_down(problem: Knapsack, groups: Sequence[int], relaxed: Relaxed) -> dict[int, int]:
    """Round each group's mean column under its shares down to an open one."""
    rounded = {}
    for g, shares in zip(groups, relaxed.shares, strict=True):
        options = problem.options[g]
        # A share that lacks its last digits shall not cost a whole column.
        mean = float(np.dot(shares, options)) + 1e-6
        rounded[g] = max((k for k in options if k <= mean), default=options[0])
    return rounded


def combine_roundings(
    problem: Knapsack, groups: Sequence[int], relaxed: Relaxed
) -> list[dict[int, int]]:
    """Round the relaxation in several ways: down, and divided groups in every combination.

    Returns:
        Group → column, for each way.
    """
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
    """Round the relaxation down and fill it up again.

    The groups with the most at stake are settled first, then the next with what is left. The
    choice breaks a budget only where every group's cheapest option breaks it too.
    """
    choice = [problem.cheapest(g) for g in range(len(problem.options))]
    groups = sorted(range(len(choice)), key=lambda g: (-problem.stake(g), g))
    while groups and problem.stake(groups[0]):
        count = count_tier(problem, groups)
        raised = _relax_choice(problem, choice, groups[:count])
        # Rounding down saves size, but an odd width may cost more time.
        if problem.fits(raised):
            choice = raised
        choice = fill(problem, choice, groups[:count])
        groups = groups[count:]
    return choice


def _relax_choice(problem: Knapsack, choice: Choice, groups: Sequence[int]) -> Choice:
    room = [
        limit - used + sum(cost[g][choice[g]] for g in groups)
        for limit, used, cost in zip(
            problem.limits, problem.used(choice), problem.costs, strict=True
        )
    ]
    relaxed = relax(problem, groups, room)
    rounded = {} if relaxed is None else round_down(problem, groups, relaxed)
    return [rounded.get(g, k) for g, k in enumerate(choice)]
