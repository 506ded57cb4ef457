"""One activation width for groups that read the same value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

import numpy as np

from mixed_bit.allocation.program import Allocation, Program, compute_exact_values
from mixed_bit.allocation.solve import solve
from ompq.errors import OmpqError

# Programs solved in search of the proven optimum; then the best branch is followed to its end.
_LIMIT = 300


@dataclass(order=True)
class _Branch:
    """A program in which some clusters are held to one width each, and its optimum.

    Attributes:
        key: What branches are ordered by: before the limit the one of most value comes first,
            after it the deepest.
        number: Number of the branch, which orders those of equal keys.
        program: The program.
        found: Its optimum.
    """

    key: tuple[int, int, int]
    number: int
    program: Program = field(compare=False)
    found: Allocation = field(compare=False)


def solve_with_shared_activations(
    program: Program, readers: Iterable[Sequence[int]], solver: str, rounding: str
) -> Allocation:
    """Allocate widths so that groups that read a common value agree on its width.

    Branch and bound: the program without agreement bounds the one with it; where groups disagree,
    they are held to each width in turn. The first branch of most value that agrees is optimal.

    Args:
        program: The program, whose columns have activation widths.
        readers: For every value, the indices of the groups that read it.
        solver: Solver of the program without agreement; see `mixed_bit.allocation.solve`.
        rounding: Rounding of the projection; see `mixed_bit.allocation.projection`.

    Raises:
        OmpqError: A budget is infeasible.
    """
    values, clusters = compute_exact_values(program), _join_readers(readers)
    root = solve(program, solver, rounding)
    branches = [_Branch((0, 0, 0), 0, program, root)]
    solved, proven = 1, root.optimal
    while branches:
        branch = heappop(branches)
        torn = [c for c in clusters if len({branch.found.act_bits[group] for group in c}) > 1]
        if not torn:
            return replace(branch.found, optimal=proven and solved < _LIMIT)
        for act in sorted(set(program.act_widths)):
            held = _hold(branch.program, torn[0], act)
            found = _try_to_solve(held, solver, rounding) if held else None
            if held is None or found is None:
                continue
            proven &= found.optimal  # else its value bounds nothing
            value = sum(row[k] for row, k in zip(values, held.choice(found), strict=True))
            key = (0, 0, -value) if solved < _LIMIT else (-1, len(torn), -value)
            heappush(branches, _Branch(key, solved, held, found))
            solved += 1
    raise OmpqError(
        "no activation widths on which the groups that read one value agree keep the budgets; "
        "loosen `bops_g` or `act_memory_kb`"
    )


def _join_readers(readers: Iterable[Sequence[int]]) -> list[list[int]]:
    """Join the groups that common values connect, in clusters of two and more.

    >>> _join_readers([(0, 1), (4, 5), (2, 1), (3,)])
    [[0, 1, 2], [4, 5]]
    """
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


def _hold(program: Program, cluster: Sequence[int], act: int) -> Program | None:
    """Hold some groups to one activation width.

    Args:
        program: The program.
        cluster: Indices of the groups.
        act: Activation width.

    Returns:
        The narrowed program; None where one of the groups does not allow this width.
    """
    allowed = program.allowed.copy()
    allowed[list(cluster)] &= np.array(program.act_widths) == act
    return replace(program, allowed=allowed) if allowed.any(axis=1).all() else None


def _try_to_solve(program: Program, solver: str, rounding: str) -> Allocation | None:
    try:
        return solve(program, solver, rounding)
    except OmpqError:
        return None
