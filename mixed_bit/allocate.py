"""Solvers of the allocation program: exact, the paper's relaxation, and projection."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array, vstack

from mixed_bit.exact import Choice, Knapsack, improve, prove
from mixed_bit.program import Allocation, Budget, Program, check_feasible, exact_values
from mixed_bit.projection import project
from ompq.errors import OmpqError

__all__ = ["Allocation", "Budget", "Program", "check_feasible", "solve"]

SOLVERS = ("ilp", "lp", "projection")
ROUNDINGS = ("fill", "nearest")
# Not a time limit: the same program must give the same answer on a slow machine.
_HIGHS_NODES = 100


def solve(program: Program, solver: str = "ilp", rounding: str = "fill") -> Allocation:
    """Choose one width per group.

    Args:
        program: prices and budgets.
        solver: `ilp` for the proven optimum of the integer program, `lp` for the linear relaxation
            rounded within the budgets, `projection` for the projection of the widest widths onto
            the size budget (prices play no part).
        rounding: for `projection` only: `fill` or `nearest`.

    Raises:
        OmpqError: a budget is infeasible (names the smallest feasible value).
    """
    if solver not in SOLVERS or rounding not in ROUNDINGS:
        raise OmpqError(f"solver {solver!r} with rounding {rounding!r}: choose from {SOLVERS}")
    check_feasible(program)
    if solver == "projection":
        choice, note = project(program, rounding)
        return _allocation(program, choice, solver, optimal=False, note=note)
    problem = _knapsack(program)
    if solver == "lp":
        choice = improve(problem, _rounded_relaxation(program, problem))
        return _allocation(program, choice, solver, optimal=False)
    choice, proven = prove(problem, _incumbent(program, problem))
    note = "" if proven else "best solution found; the proof of optimality grew too large"
    return _allocation(program, choice, solver, optimal=proven, note=note)


def _allocation(
    program: Program, choice: Choice, solver: str, *, optimal: bool, note: str = ""
) -> Allocation:
    bits = tuple(program.widths[k] for k in choice)
    spent = {b.name: b.spent(choice) / b.per_unit for b in program.budgets}
    return Allocation(bits, solver, optimal, spent, note)


def _knapsack(program: Program) -> Knapsack:
    return Knapsack(
        values=exact_values(program),
        costs=[budget.cost.tolist() for budget in program.budgets],
        limits=[budget.available for budget in program.budgets],
        options=program.options(),
    )


def _incumbent(program: Program, problem: Knapsack) -> Choice:
    """A good choice to start the proof from: HiGHS's where its tolerances let it keep the budgets.

    Coefficients beyond its resolution are settled by `improve` and by the proof.
    """
    candidates = [improve(problem, start) for start in _starts(program, problem)]
    return max(candidates, key=problem.value)


def _starts(program: Program, problem: Knapsack) -> list[Choice]:
    starts = [_integer_program(program), _rounded_relaxation(program, problem)]
    fitting = [start for start in starts if start is not None and problem.fits(start)]
    if not fitting:
        raise OmpqError("the budgets cannot be kept together; loosen one of them")
    return fitting


def _columns(program: Program) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    groups, widths = np.nonzero(program.allowed)
    return groups, widths


def _scaled_prices(program: Program) -> NDArray[np.float64]:
    """Prices of the allowed columns, each group's cheapest at zero, the largest at one."""
    groups, widths = _columns(program)
    scale = np.exp(np.maximum(program.log_scale - program.log_scale.max(), -700.0))
    price = program.price * scale[:, None]
    lowest = np.where(program.allowed, price, np.inf).min(axis=1, keepdims=True)
    shifted = np.asarray((price - lowest)[groups, widths])
    return np.asarray(shifted / max(float(shifted.max()), np.finfo(float).tiny))


def _constraints(program: Program) -> tuple[csr_array, csr_array, NDArray[np.float64]]:
    """One-width-per-group rows, and the budget rows with a right-hand side of 1 each."""
    groups, widths = _columns(program)
    count = len(groups)
    one = csr_array((np.ones(count), (groups, np.arange(count))))
    rows = [budget.cost[groups, widths] / max(budget.available, 1) for budget in program.budgets]
    limits = np.array([float(budget.available > 0) for budget in program.budgets])
    return one, csr_array(np.array(rows)), limits


def _integer_program(program: Program) -> Choice | None:
    one, budgets, limits = _constraints(program)
    ones = np.ones(one.shape[0])
    constraint = LinearConstraint(
        vstack([one, budgets]).tocsc(),
        np.concatenate([ones, np.full(len(limits), -np.inf)]),
        np.concatenate([ones, limits]),
    )
    prices = _scaled_prices(program)
    result = milp(
        prices,
        integrality=np.ones(len(prices)),
        bounds=Bounds(0, 1),
        constraints=constraint,
        options={"mip_rel_gap": 0.0, "node_limit": _HIGHS_NODES},
    )
    return None if result.x is None else _largest_share(program, result.x)


def _largest_share(program: Program, x: NDArray[np.float64]) -> Choice:
    shares = np.full(program.allowed.shape, -1.0)
    shares[_columns(program)] = x
    choice: Choice = shares.argmax(axis=1).tolist()
    return choice


def _rounded_relaxation(program: Program, problem: Knapsack) -> Choice:
    """The relaxation's fractional widths, each rounded down to a candidate."""
    one, budgets, limits = _constraints(program)
    prices = _scaled_prices(program)
    result = linprog(
        prices,
        A_ub=budgets,
        b_ub=limits,
        A_eq=one,
        b_eq=np.ones(one.shape[0]),
        bounds=(0, 1),
        method="highs",
    )
    narrowest: Choice = [options[0] for options in problem.options]
    if result.x is None:
        return narrowest
    shares = np.zeros(program.allowed.shape)
    shares[_columns(program)] = result.x
    fractional = shares @ np.array(program.widths, dtype=np.float64)
    rounded = _round_down(program, problem, fractional)
    return rounded if problem.fits(rounded) else narrowest


def _round_down(
    program: Program, problem: Knapsack, fractional: Sequence[float] | NDArray[np.float64]
) -> Choice:
    choice = []
    for options, width in zip(problem.options, fractional, strict=True):
        below = [k for k in options if program.widths[k] <= width + 1e-9]
        choice.append(below[-1] if below else options[0])
    return choice
