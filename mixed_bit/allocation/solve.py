"""Solvers of the allocation program: exact, the paper's relaxation, and projection."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mixed_bit.allocation.exact.branch import prove
from mixed_bit.allocation.exact.knapsack import Knapsack, settle_ties
from mixed_bit.allocation.exact.relaxation import round_relaxation
from mixed_bit.allocation.program import (
    Allocation,
    Budget,
    Program,
    check_feasible,
    compute_exact_values,
)
from mixed_bit.allocation.projection import project
from mixed_bit.settings import ROUNDINGS, SOLVERS
from ompq.errors import OmpqError

__all__ = ["Allocation", "Budget", "Program", "check_feasible", "solve"]


def solve(program: Program, solver: str = "ilp", rounding: str = "fill") -> Allocation:
    """Choose one width per group.

    One program has one answer everywhere. Where `ilp` finds choices of exactly equal value, widths
    that can be raised at no loss are raised, the last group first, and groups alike in every
    sensitivity and cost give the later ones more bits.

    Args:
        program: Sensitivities and budgets.
        solver: `ilp` for the proven optimum of the integer program, `lp` for the linear relaxation
            rounded within the budgets, `projection` for the projection of the widest widths onto
            the size budget (sensitivities play no part).
        rounding: Rounding of `projection`, `fill` or `nearest`; the other solvers ignore it.

    Raises:
        OmpqError: A budget is infeasible (names the smallest feasible value), or there is no such
            solver or rounding.
    """
    if solver not in SOLVERS:
        raise OmpqError(f"`solver` {solver!r}: choose from {', '.join(SOLVERS)}")
    if rounding not in ROUNDINGS:
        raise OmpqError(f"`rounding` {rounding!r}: choose from {', '.join(ROUNDINGS)}")
    check_feasible(program)
    if solver == "projection":
        choice, note = project(program, rounding)
        return program.allocation(choice, solver, note=note)
    problem = _build_knapsack(program)
    # The proof closes more options at once the better the choice it starts from.
    rounded = round_relaxation(problem)
    start = rounded if problem.fits(rounded) else None
    if solver == "lp" and start is not None:
        return program.allocation(start, solver)
    best, proven = prove(problem, start)
    if best is None:
        raise OmpqError(_explain_conflict(program, proven))
    note = "" if proven else "best solution found; the proof of optimality grew too large"
    return program.allocation(settle_ties(problem, best), solver, optimal=proven, note=note)


def _build_knapsack(program: Program) -> Knapsack:
    program = _drop_steps(program)
    # Without a budget there is one that costs nothing: the arrays always have a row.
    free = [[0] * len(program.widths) for _ in program.names]
    return Knapsack(
        values=compute_exact_values(program),
        costs=[budget.cost.tolist() for budget in program.budgets] or [free],
        limits=[budget.available for budget in program.budgets] or [0],
        options=program.options(),
    )


def _drop_steps(program: Program) -> Program:
    """Close options that no step of the network has memory for, and drop steps that allow all.

    Most steps have few values whose width is chosen: what is left is a smaller program.
    """
    steps = [budget for budget in program.budgets if budget.place]
    if not steps:
        return program
    allowed, before = program.allowed.copy(), None
    while before != allowed.sum():
        before = allowed.sum()
        for budget in steps:
            least = np.where(allowed, budget.cost, np.iinfo(np.int64).max).min(axis=1)
            room = budget.available - int(least.sum())
            closed = allowed & (budget.cost - least[:, None] <= room)
            # A step without room for the least leaves nothing: that is said elsewhere.
            allowed = closed if closed.any(axis=1).all() else allowed
    most = [int(np.where(allowed, budget.cost, 0).max(axis=1).sum()) for budget in steps]
    binding = [b for b, spent in zip(steps, most, strict=True) if spent > b.available]
    others = [budget for budget in program.budgets if not budget.place]
    return replace(program, allowed=allowed, budgets=(*others, *binding))


def _explain_conflict(program: Program, proven: bool) -> str:
    names = " and ".join(f"{b.name} {b.limit / b.per_unit:.4f} {b.unit}" for b in program.budgets)
    found = "cannot be kept together" if proven else "were not met together by any widths tried"
    return f"the budgets {names} {found}, though each alone can; loosen one of them"
