"""Random allocations: a baseline to beat, and a sample to compare metrics on."""

from __future__ import annotations

import numpy as np

from mixed_bit.allocation.program import Allocation, Program, check_feasible
from ompq.errors import OmpqError


def draw_allocation(program: Program, generator: np.random.Generator) -> Allocation:
    """Draw an allocation that keeps the budgets and spends them: no width can be raised.

    Widths are drawn alike for all groups, lowered at random until the budgets are kept, then raised
    at random while any raise fits.

    Args:
        program: The program, of which the budgets and the allowed columns matter.
        generator: Random generator.

    Raises:
        OmpqError: A budget is infeasible, or the draw cannot be lowered until it keeps all budgets.
    """
    check_feasible(program)
    choice = draw_columns(program, generator)
    choice = _lower(program, choice, generator)
    choice = _raise(program, choice, generator)
    return program.allocation(choice, "random")


def draw_columns(program: Program, generator: np.random.Generator) -> list[int]:
    """Draw columns without regard to budgets, some widths likelier than others each time.

    The shares of the columns are drawn first (Dirichlet, all ones), so that draws differ in size.

    Args:
        program: The program, of which the allowed columns matter.
        generator: Random generator.

    Returns:
        One column index per group.
    """
    choice = []
    shares = generator.dirichlet(np.ones(program.sensitivity.shape[1]))
    for row in program.allowed:
        # Where all allowed columns got a share of 0, they are drawn alike.
        open_shares = np.where(row, shares, 0) + row * 1e-12
        choice.append(int(generator.choice(len(row), p=open_shares / open_shares.sum())))
    return choice


def _lower(program: Program, choice: list[int], generator: np.random.Generator) -> list[int]:
    """Lower columns at random until every budget is kept."""
    choice = list(choice)
    for budget in program.budgets:
        while budget.spent(choice) > budget.limit:
            cheaper = [
                (g, k)
                for g, options in enumerate(program.options())
                for k in options
                if _saves(program, g, choice[g], k)
                and budget.cost[g, k] < budget.cost[g, choice[g]]
            ]
            if not cheaper:
                raise OmpqError("no allocation drawn at random keeps all budgets; loosen one")
            g, k = cheaper[generator.integers(len(cheaper))]
            choice[g] = k
    return choice


def _saves(program: Program, group: int, old: int, new: int) -> bool:
    """Tell whether no budget spends more by the change."""
    return all(budget.cost[group, new] <= budget.cost[group, old] for budget in program.budgets)


def _raise(program: Program, choice: list[int], generator: np.random.Generator) -> list[int]:
    """Raise columns at random until no raise fits the budgets."""
    choice = list(choice)
    room = [budget.limit - budget.spent(choice) for budget in program.budgets]
    moved = True
    while moved:
        moved = False
        for g in generator.permutation(len(choice)).tolist():
            wider = [
                k
                for k in program.options()[g]
                if k != choice[g] and _dominates(program, k, choice[g])
            ]
            costs = {
                k: [int(b.cost[g, k] - b.cost[g, choice[g]]) for b in program.budgets]
                for k in wider
            }
            fitting = [k for k in wider if all(c <= r for c, r in zip(costs[k], room, strict=True))]
            if fitting:
                k = fitting[generator.integers(len(fitting))]
                room = [r - c for r, c in zip(room, costs[k], strict=True)]
                choice[g], moved = k, True
    return choice


def _dominates(program: Program, new: int, old: int) -> bool:
    """Tell whether a column has neither a narrower weight nor a narrower activation width."""
    acts = program.act_widths or (0,) * len(program.widths)
    return program.widths[new] >= program.widths[old] and acts[new] >= acts[old]
