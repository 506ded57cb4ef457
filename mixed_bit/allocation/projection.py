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

_LONGEST_BITSET = 2**27


def project(program: Program, rounding: str) -> tuple[list[int], str]:
    """Column index of every group, and a note where the budget is exceeded.

    Args:
        program: its prices are not looked at; it must have a budget named `size`.
        rounding: `fill` rounds up or down so that the size comes closest to the relaxed one from
            below, ties giving later groups more bits; `nearest` rounds each width alone and may
            exceed the budget.
    """
    budget = next((budget for budget in program.budgets if budget.name == "size"), None)
    if budget is None or len(program.budgets) > 1:
        raise OmpqError("--solver projection knows a size budget alone; set --model_size only")
    relaxed = _relaxed(program, budget)
    choose = {"fill": _fill, "nearest": _nearest}[rounding]
    choice = choose(program, budget, relaxed)
    over = budget.spent(choice) - budget.limit
    note = f"exceeds the size budget by {over / budget.per_unit:.4f} {budget.unit}"
    return choice, note if over > 0 else ""


def _relaxed(program: Program, budget: Budget) -> NDArray[np.float64]:
    """Fractional widths: bisection on λ, then exactly, on the groups strictly inside."""
    widths = np.array(program.widths, dtype=np.float64)
    low = np.where(program.allowed, widths, np.inf).min(axis=1)
    high = np.where(program.allowed, widths, -np.inf).max(axis=1)
    params = budget.cost[:, -1] / widths[-1]
    if params @ high <= budget.available:
        return np.asarray(high)
    smallest, largest = 0.0, float(((high - low) / params).max())
    for _ in range(200):
        middle = (smallest + largest) / 2
        if params @ np.clip(high - middle * params, low, high) > budget.available:
            smallest = middle
        else:
            largest = middle
    return np.asarray(np.clip(high - largest * params, low, high))


def _neighbours(program: Program, relaxed: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Column of the widest allowed width not above, and of the narrowest not below."""
    pairs = []
    for options, width in zip(program.options(), relaxed, strict=True):
        below = [k for k in options if program.widths[k] <= width + 1e-9]
        above = [k for k in options if program.widths[k] >= width - 1e-9]
        pairs.append((below[-1] if below else options[0], above[0] if above else options[-1]))
    return pairs


def _nearest(program: Program, budget: Budget, relaxed: NDArray[np.float64]) -> list[int]:
    return [
        down if relaxed[g] - program.widths[down] < program.widths[up] - relaxed[g] else up
        for g, (down, up) in enumerate(_neighbours(program, relaxed))
    ]


def _fill(program: Program, budget: Budget, relaxed: NDArray[np.float64]) -> list[int]:
    pairs = _neighbours(program, relaxed)
    base = sum(int(budget.cost[g, down]) for g, (down, _) in enumerate(pairs))
    steps = [int(budget.cost[g, up] - budget.cost[g, down]) for g, (down, up) in enumerate(pairs)]
    raised = _largest_sum(steps, budget.available - base)
    return [up if lift else down for (down, up), lift in zip(pairs, raised, strict=True)]


def _largest_sum(steps: list[int], room: int) -> list[bool]:
    """Which steps to take so that their sum is the largest within `room`; later ones preferred.

    Subset sums as one bit set in a whole number, in units of the common divisor.
    """
    unit = reduce(gcd, steps, 0) or 1
    room = min(room // unit, sum(steps) // unit)
    sizes = [step // unit for step in steps]
    if room > _LONGEST_BITSET:
        raise OmpqError("--rounding fill: the layer sizes share no divisor; use --rounding nearest")
    mask = (1 << (room + 1)) - 1
    reachable = [1]
    for size in sizes:
        reachable.append((reachable[-1] | reachable[-1] << size) & mask)
    target = reachable[-1].bit_length() - 1
    taken = [False] * len(sizes)
    for index in reversed(range(len(sizes))):
        size = sizes[index]
        if size and size <= target and reachable[index] >> (target - size) & 1:
            taken[index], target = True, target - size
    return taken
