"""One activation width for groups that read the same value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from mixed_bit import allocate
from mixed_bit.allocate import Allocation
from mixed_bit.program import Program
from ompq.errors import OmpqError


def solve_in_agreement(
    program: Program, readers: Iterable[Sequence[int]], solver: str, rounding: str
) -> Allocation:
    """The allocation in which groups that read a common value agree on its width.

    The program prices every group alone. Where its optimum agrees anyway, it is the answer; else
    the groups of one value after the other are held to the common width that costs least, and
    optimality is no longer proven.

    Args:
        program: with activation widths.
        readers: for every value, the indices of the groups that read it.
        solver: see `allocate.solve`.
        rounding: see `allocate.solve`.
    """
    found = allocate.solve(program, solver, rounding)
    relaxed = found.price
    for cluster in _clusters(readers):
        if len({found.act_bits[group] for group in cluster}) == 1:
            continue
        held = [_held(program, cluster, act) for act in sorted(set(program.act_widths))]
        tried = [(p, a) for p in held if p and (a := _solved(p, solver, rounding))]
        if not tried:
            raise OmpqError(
                f"no activation width of {', '.join(program.names[g] for g in cluster)}, which "
                "read one value, keeps the budgets; loosen --bops"
            )
        program, found = min(tried, key=lambda pair: pair[1].price)
    return found if found.price <= relaxed else replace(found, optimal=False)


def _clusters(readers: Iterable[Sequence[int]]) -> list[list[int]]:
    """Groups connected by common values, two and more."""
    clusters: list[set[int]] = []
    for groups in readers:
        merged = set(groups)
        apart = []
        for cluster in clusters:
            if cluster & merged:
                merged |= cluster
            else:
                apart.append(cluster)
        clusters = [*apart, merged]
    return sorted(sorted(cluster) for cluster in clusters if len(cluster) > 1)


def _held(program: Program, cluster: Sequence[int], act: int) -> Program | None:
    """The program with one activation width for some groups, if all of them allow it."""
    allowed = program.allowed.copy()
    allowed[list(cluster)] &= np.array(program.act_widths) == act
    return replace(program, allowed=allowed) if allowed.any(axis=1).all() else None


def _solved(program: Program, solver: str, rounding: str) -> Allocation | None:
    try:
        return allocate.solve(program, solver, rounding)
    except OmpqError:
        return None
