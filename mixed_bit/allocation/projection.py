"""What the published PTQ runs computed: the widest widths, projected onto the size budget.

b_i = clip(max − λ·params_i, min, max) is the point of the budget plane (within the box) closest to
"widest everywhere"; λ follows from the budget. No image and no weight enters.
"""

from __future__ import annotations

from functools import reduce
from math import gcd

import numpy as np
from numpy.typing import NDArray

from mixed_bit.allocation.program import Budget, Program
from ompq.errors import OmpqError

# Bits of one set of reachable sums: 16 MiB, and there is one for every group.
_LONGEST_BITSET = 2**27


def project(program: Program, rounding: str) -> tuple[list[int], str]:
    """Project the widest widths onto the size budget and round them.

    Args:
        program: Program with one budget, named `size`; its sensitivities are not looked at.
        rounding: `fill` rounds up or down so that the size comes closest to the relaxed one from
            below, ties giving later groups more bits; `nearest` rounds each width alone and may
            exceed the budget.

    Returns:
        Column index of every group, and a note where the budget is exceeded (else empty).

    Raises:
        OmpqError: There is another budget than the size, or `fill` would need too much memory.
    """
    budget = next((budget for budget in program.budgets if budget.name == "size"), None)
    # What costs nothing, whatever the widths, has been found to be kept.
    others = [other for other in program.budgets if other is not budget and other.cost.any()]
    if budget is None or others:
        raise OmpqError("`solver` projection knows a size budget alone; set `size_mb` only")
    relaxed = _relax(program, budget)
    choose = {"fill": _fill, "nearest": _round_to_nearest}[rounding]
    choice = choose(program, budget, relaxed)
    over = budget.spent(choice) - budget.limit
    note = f"exceeds the size budget by {over / budget.per_unit:.4f} {budget.unit}"
    return choice, note if over > 0 else ""


def _relax(program: Program, budget: Budget) -> NDArray[np.float64]:
    """Project onto the budget plane, by bisection on λ: a fractional width for every group."""
    widths = np.array(program.widths, dtype=np.float64)
    low = np.where(program.allowed, widths, np.inf).min(axis=1)
    high = np.where(program.allowed, widths, -np.inf).max(axis=1)
    params = budget.cost[:, -1] / widths[-1]
    if params @ high <= budget.available:
        return np.asarray(high)
    smallest, largest = 0.0, float(((high - low) / params).max())
    # More halvings than a float64 has digits: the two ends meet.
    for _ in range(200):
        middle = (smallest + largest) / 2
        if params @ np.clip(high - middle * params, low, high) > budget.available:
            smallest = middle
        else:
            largest = middle
    # Of the two ends the one that keeps the budget.
    return np.asarray(np.clip(high - largest * params, low, high))


def _find_neighbours(program: Program, relaxed: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Find the column of the widest allowed width not above, and of the narrowest not below."""
    pairs = []
    # A width that the bisection meets but for its last digits counts as met.
    for options, width in zip(program.options(), relaxed, strict=True):
        below = [k for k in options if program.widths[k] <= width + 1e-9]
        above = [k for k in options if program.widths[k] >= width - 1e-9]
        pairs.append((below[-1] if below else options[0], above[0] if above else options[-1]))
    return pairs


def _round_to_nearest(program: Program, budget: Budget, relaxed: NDArray[np.float64]) -> list[int]:
    return [
        down if relaxed[g] - program.widths[down] < program.widths[up] - relaxed[g] else up
        for g, (down, up) in enumerate(_find_neighbours(program, relaxed))
    ]


def _fill(program: Program, budget: Budget, relaxed: NDArray[np.float64]) -> list[int]:
    pairs = _find_neighbours(program, relaxed)
    base = sum(int(budget.cost[g, down]) for g, (down, _) in enumerate(pairs))
    steps = [int(budget.cost[g, up] - budget.cost[g, down]) for g, (down, up) in enumerate(pairs)]
    raised = _pick_largest_sum(steps, budget.available - base)
    return [up if lift else down for (down, up), lift in zip(pairs, raised, strict=True)]


def _pick_largest_sum(steps: list[int], room: int) -> list[bool]:
    """Pick the steps whose sum is the largest within `room`; among equals, later ones.

    Args:
        steps: Whole numbers, not negative.
        room: The most that the picked steps may add up to, not negative.

    Returns:
        Whether each step is picked.

    Raises:
        OmpqError: The sums are too many to be listed.

    >>> _pick_largest_sum([4, 6, 5], room=10)
    [True, True, False]
    >>> _pick_largest_sum([5, 5], room=9)
    [False, True]
    """
    # Layer sizes are multiples of 9 or of channel counts: in units of their common divisor, all
    # sums of subsets fit into the bits of one whole number.
    unit = reduce(gcd, steps, 0) or 1
    room = min(room // unit, sum(steps) // unit)
    sizes = [step // unit for step in steps]
    if room > _LONGEST_BITSET:
        raise OmpqError("`rounding` fill: the layer sizes share no divisor; use `rounding` nearest")
    mask = (1 << (room + 1)) - 1
    reachable = [1]
    for size in sizes:
        reachable.append((reachable[-1] | reachable[-1] << size) & mask)
    # Backwards from the largest sum, through the sums that the steps before could reach.
    target = reachable[-1].bit_length() - 1
    taken = [False] * len(sizes)
    for index in reversed(range(len(sizes))):
        size = sizes[index]
        if size and size <= target and reachable[index] >> (target - size) & 1:
            taken[index], target = True, target - size
    return taken
