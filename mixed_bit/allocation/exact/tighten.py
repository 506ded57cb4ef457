"""Two rewritings that keep every choice and make the relaxation a better bound.

Limits are lowered to sums that can be reached; and where values nearly tie, the number of ties that
fit becomes a budget of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import gcd

from mixed_bit.allocation.exact.knapsack import Choice, Knapsack

Prove = Callable[[Knapsack, Choice | None], tuple[Choice | None, bool]]
# Most units that one value may be: with more, the count is as hard to settle as the values.
_LARGEST_COUNT = 64
# Values nearly are whole multiples of a unit where they are off by a fifth of it at most.
_NEAR = 5


def tighten(
    problem: Knapsack, prove: Prove, incumbent: Choice | None
) -> tuple[Knapsack, Choice | None]:
    """Rewrite a program so that its relaxation is a better bound; every choice stays possible.

    Args:
        problem: The program.
        prove: Exact solver, for the program that maximises the count.
        incumbent: A choice that keeps the budgets; None where none is known.

    Returns:
        The program and an incumbent, the better of the given one and the one of the highest count.
    """
    problem = replace(problem, limits=_lower_limits(problem))
    unit, counts = _count_units(problem)
    if not unit:
        return problem, incumbent
    coarse = replace(problem, values=counts)
    best, proven = prove(coarse, incumbent)
    # Only a proven highest count may become a limit: any other could cut off the optimum.
    if best is None or not proven:
        return problem, incumbent
    costs, limits = [*problem.costs, counts], [*problem.limits, coarse.value(best)]
    base = (*[0] * len(problem.limits), unit)
    start = max((c for c in (incumbent, best) if c is not None), key=problem.value)
    return replace(problem, costs=costs, limits=limits, base=base), start


def _lower_limits(problem: Knapsack) -> list[int]:
    """Lower every limit to the next sum that the costs' common divisor lets choices reach."""
    limits = []
    for cost, limit in zip(problem.costs, problem.limits, strict=True):
        rows = [[cost[g][k] for k in options] for g, options in enumerate(problem.options)]
        least = sum(min(row) for row in rows)
        step = gcd(*(value - row[0] for row in rows for value in row)) or 1
        limits.append(least + (limit - least) // step * step)
    return limits


def _count_units(problem: Knapsack) -> tuple[int, list[list[int]]]:
    """Express the values as small whole multiples of a unit, where they nearly are that.

    With β near zero every bit of every group is worth the same to nine digits. How many bits fit
    is then one bound, settled first; which bits, the rest of the program decides under it.

    Returns:
        The unit and the multiples, G × K; 0 and nothing where values are no such multiples, or
        exact ones, of which the count would say nothing new.
    """
    rows = [[problem.values[g][k] for k in o] for g, o in enumerate(problem.options)]
    steps = [v - min(row) for row in rows for v in row if v > min(row)]
    if not steps:
        return 0, []
    unit = min(steps)
    if max(steps) > unit * _LARGEST_COUNT or all(step % unit == 0 for step in steps):
        return 0, []
    if any(abs(step - round_div(step, unit) * unit) * _NEAR > unit for step in steps):
        return 0, []
    lowest = [min(row) for row in rows]
    counts = [
        # Closed options may lie below the lowest open one; they need some count, and none below 0.
        [max(0, round_div(value - low, unit)) for value in row]
        for row, low in zip(problem.values, lowest, strict=True)
    ]
    return unit, counts


def round_div(value: int, unit: int) -> int:
    """Divide and round to the nearest whole number, halves up.

    >>> [round_div(value, 10) for value in (14, 15, -15, -16)]
    [1, 2, -1, -2]
    """
    return (2 * value + unit) // (2 * unit)
