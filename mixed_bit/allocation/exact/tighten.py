"""Two rewritings that keep every choice and make the relaxation a better bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import gcd

from mixed_bit.allocation.exact.knapsack import Choice, Knapsack

Prove = Callable[[Knapsack, Choice | None], tuple[Choice | None, bool]]
_LARGEST_COUNT = 64
_NEAR = 5


def tighten(
    problem: Knapsack, prove: Prove, incumbent: Choice | None
) -> tuple[Knapsack, Choice | None]:
    """The same choices under limits that can be met, with a count cut where values nearly tie.

    Returns:
        The program and an incumbent, the better of the given one and the one of the highest count.
    """
    problem = replace(problem, limits=_reachable_limits(problem))
    unit, counts = _counts(problem)
    if not unit:
        return problem, incumbent
    coarse = replace(problem, values=counts)
    best, proven = prove(coarse, incumbent)
    if best is None or not proven:
        return problem, incumbent
    costs, limits = [*problem.costs, counts], [*problem.limits, coarse.value(best)]
    base = (*[0] * len(problem.limits), unit)
    start = max((c for c in (incumbent, best) if c is not None), key=problem.value)
    return replace(problem, costs=costs, limits=limits, base=base), start


def _reachable_limits(problem: Knapsack) -> list[int]:
    """Limits lowered to the next sum that the costs' common divisor lets them reach."""
    limits = []
    for cost, limit in zip(problem.costs, problem.limits, strict=True):
        rows = [[cost[g][k] for k in options] for g, options in enumerate(problem.options)]
        least = sum(min(row) for row in rows)
        step = gcd(*(value - row[0] for row in rows for value in row)) or 1
        limits.append(least + (limit - least) // step * step)
    return limits


def _counts(problem: Knapsack) -> tuple[int, list[list[int]]]:
    """A unit, and values as small whole multiples of it; 0 where they are not nearly that.

    With β near zero every bit of every group is worth the same to nine digits. How many bits fit
    is then one bound, settled first; which bits, the rest of the program decides under it.
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
        [max(0, round_div(value - low, unit)) for value in row]
        for row, low in zip(problem.values, lowest, strict=True)
    ]
    return unit, counts


def round_div(value: int, unit: int) -> int:
    """value / unit, rounded to nearest."""
    return (2 * value + unit) // (2 * unit)
