"""Sums of products of two values as steps: matrix products, however they are spelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor
from torch.fx import GraphModule

from ompq.export.c.program import Bounds, Region, Task

# Results are counted by this many loops, and by one along which they are computed in a row.
OUTER_LOOPS = 3
# Products that are looked at together.
_CHECKED = 2**20


@dataclass(frozen=True)
class Loop:
    """A loop over the elements of two values.

    Attributes:
        size: Its turns.
        first: Places from one element of the first value to the next.
        second: Places from one element of the second value to the next.
    """

    size: int
    first: int
    second: int

    def exchange(self) -> Loop:
        """Return the loop with the values exchanged."""
        return Loop(self.size, self.second, self.first)


@dataclass(frozen=True)
class Pattern:
    """Which elements of two values results are made of: result i = Σ a[…] · b[…].

    Attributes:
        shape: Shape of the results.
        loops: How the elements move with every dimension of the results.
        summed: How the elements of a result follow one another.
        starts: Places of the first elements.
    """

    shape: tuple[int, ...]
    loops: tuple[Loop, ...]
    summed: Loop
    starts: tuple[int, int]

    def exchange(self) -> Pattern:
        """Return the pattern with the values exchanged."""
        loops = tuple(loop.exchange() for loop in self.loops)
        first, second = self.starts
        return Pattern(self.shape, loops, self.summed.exchange(), (second, first))

    def find_first_places(self, number: int) -> Tensor:
        """Find where in one of the values, 0 or 1, the first element of every result is."""
        places = torch.tensor(self.starts[number])
        for dim, loop in enumerate(self.loops):
            line = torch.arange(loop.size) * (loop.first, loop.second)[number]
            places = places + line.view([-1 if k == dim else 1 for k in range(len(self.loops))])
        return places.broadcast_to(self.shape).flatten()


@dataclass(frozen=True)
class Contraction(Task):
    """Sums of products of two values, row by row.

    Attributes:
        loops: Loops over rows, `OUTER_LOOPS` of them.
        columns: Loop over a row, for which the first value's elements stay.
        summed: Loop over the products that are summed.
        second: The second value; the first one is what the step reads.
    """

    loops: tuple[Loop, ...]
    columns: Loop
    summed: Loop
    second: Region


def find_pattern(function: GraphModule, shapes: Sequence[tuple[int, ...]]) -> Pattern | None:
    """Find, by trying, which elements of two values every result is made of.

    Args:
        function: An operation that is linear in both values, without factors, in float.
        shapes: Shapes of both values for one image.

    Returns:
        The pattern; None where loops cannot follow it.
    """
    with torch.inference_mode(False), torch.enable_grad():
        seen = _Probe(function, shapes)
        places = seen.find_pairs(0)
        loops = []
        for dim, size in enumerate(seen.shape):
            moved = seen.find_pairs(prod(seen.shape[dim + 1 :])) if size > 1 else places
            if not len(places[0]) or len(moved[0]) != len(places[0]):
                return None
            moves = [after - before for before, after in zip(places, moved, strict=True)]
            loops.append(_make_loop(size, moves))
    summed = _make_loop(len(places[0]), [own.diff() for own in places])
    if summed is None or None in loops:
        return None
    starts = int(places[0][0]), int(places[1][0])
    pattern = Pattern(seen.shape, tuple(filter(None, loops)), summed, starts)
    return pattern if _follows(function, shapes, pattern) else None


def make_contraction(pattern: Pattern, second: Region) -> Contraction | None:
    """Make a task of a pattern whose last loop leaves the first value's elements where they are.

    Args:
        pattern: The pattern; one with other last loops is computed result by result.
        second: The second value.

    Returns:
        The task; None where it takes more loops than there are.
    """
    loops = [loop for loop in pattern.loops if loop.size > 1]
    columns = loops.pop() if loops and loops[-1].first == 0 else Loop(1, 0, 0)
    merged: list[Loop] = []
    for loop in loops:
        outer = merged[-1] if merged else None
        ends = loop.size * loop.first, loop.size * loop.second
        if outer is not None and (outer.first, outer.second) == ends:
            merged[-1] = replace(loop, size=outer.size * loop.size)
        else:
            merged.append(loop)
    if len(merged) > OUTER_LOOPS:
        return None
    filled = [Loop(1, 0, 0)] * (OUTER_LOOPS - len(merged)) + merged
    return Contraction(tuple(filled), columns, pattern.summed, second)


def bound_sums(count: int, first: Bounds, second: Bounds) -> Bounds:
    """Return what sums of products lie between.

    Args:
        count: Products of a sum.
        first: What the elements of one value lie between.
        second: What those of the other lie between.
    """
    ends = [a * b for a in first for b in second]
    return min(0, count * min(ends)), max(0, count * max(ends))


class _Probe:
    """Tells which elements results are made of, by their derivatives."""

    def __init__(self, function: GraphModule, shapes: Sequence[tuple[int, ...]]) -> None:
        first = torch.zeros(shapes[0], dtype=torch.float64, requires_grad=True)
        # Whatever is multiplied by an element of the first value is its derivative.
        numbers = torch.arange(1, prod(shapes[1]) + 1, dtype=torch.float64).view(shapes[1])
        self._first, self._result = first, function(first, numbers)
        self.shape = tuple(self._result.shape)

    def find_pairs(self, place: int) -> tuple[Tensor, Tensor]:
        """Find the places of the elements that a result is made of, in the first one's order."""
        chosen = self._result.reshape(-1)[place]
        (derivative,) = torch.autograd.grad(chosen, self._first, retain_graph=True)
        flat = derivative.flatten()
        places = torch.nonzero(flat).flatten()
        return places, flat[places].round().long() - 1


def _make_loop(size: int, moves: Sequence[Tensor]) -> Loop | None:
    """Make a loop of how elements of both values move; None where they differ in that."""
    if any(bool((moved != moved[:1]).any()) for moved in moves):
        return None
    first, second = (int(moved[0]) if len(moved) else 0 for moved in moves)
    return Loop(size, first, second)


@torch.no_grad()
def _follows(function: GraphModule, shapes: Sequence[tuple[int, ...]], pattern: Pattern) -> bool:
    """Tell whether an operation computes what a pattern says, of any integers."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randint(-128, 128, shape, generator=generator).double() for shape in shapes]
    results = function(*values).flatten()
    summed = pattern.summed
    lines = [torch.arange(summed.size) * step for step in (summed.first, summed.second)]
    places = [pattern.find_first_places(number) for number in range(2)]
    for place, line, value in zip(places, lines, values, strict=True):
        ends = torch.stack([place, place + line[-1]])
        if int(ends.min()) < 0 or int(ends.max()) >= value.numel():
            return False
    rows = max(1, _CHECKED // summed.size)
    for begin in range(0, len(results), rows):
        first, second = (
            value.flatten()[place[begin : begin + rows, None] + line]
            for place, line, value in zip(places, lines, values, strict=True)
        )
        if not torch.equal((first * second).sum(dim=1), results[begin : begin + rows]):
            return False
    return True
