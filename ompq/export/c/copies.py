"""Values arranged anew: as loops of copies where their places allow it, else by a table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, prod

import torch
from torch import Tensor

from ompq.export.c.program import Task, View

# More parts than that are better told by a table, and so is what takes few entries: nested loops
# take about as much code as these.
_MOST_PARTS = 8
_ENTRIES_OF_LOOPS = 50


@dataclass(frozen=True)
class Axis:
    """A loop of copies.

    Attributes:
        to: Offsets of its turns in the result, int64.
        origin: Offsets of its turns in the source, int64.
    """

    to: Tensor
    origin: Tensor

    @property
    def count(self) -> int:
        """Return the number of turns."""
        return len(self.to)

    @property
    def strides(self) -> tuple[int | None, int | None]:
        """Return what the offsets in result and source grow by; None where that differs."""
        return _find_stride(self.to), _find_stride(self.origin)


@dataclass(frozen=True)
class Copy(Task):
    """Runs of values copied by nested loops.

    Attributes:
        axes: The loops, from the outermost on.
        to: Place of the first value in the result.
        origin: Place of the first value in the source.
        run: Neighbouring values that are copied at once.
        zeros: Whether what is not copied is zero.
    """

    axes: tuple[Axis, ...]
    to: int
    origin: int
    run: int
    zeros: bool


@dataclass(frozen=True)
class Gather(Task):
    """Runs of values copied from the places that a table tells.

    Attributes:
        table: Place in the source of the first value of each run, int64; -1 for zeros.
        run: Length of a run.
        zeros: Whether some are zeros.
    """

    table: Tensor
    run: int
    zeros: bool


@dataclass(frozen=True)
class Copies(Task):
    """Several copies, each of a part of the result.

    Attributes:
        parts: The copies; none of them fills zeros itself.
        zeros: Whether what is not copied is zero.
    """

    parts: tuple[Copy, ...]
    zeros: bool


def plan_copy(view: View) -> Task:
    """Plan how the elements of a view become neighbours.

    Args:
        view: View of a buffer.
    """
    places = view.places.reshape([size for size in view.shape if size > 1] or [1])
    zeros = bool((places < 0).any())
    steps = [prod(places.shape[dim + 1 :]) for dim in range(places.dim())]
    whole = _plan_loops(places, steps, 0)
    if whole is not None:
        return replace(whole, zeros=zeros)
    gather = _plan_gather(places.flatten(), zeros)
    cuts = [_cut(places, steps, dim) for dim in range(places.dim())]
    parts = min((parts for parts in cuts if parts is not None), key=len, default=())
    cheaper = bool(parts) and _ENTRIES_OF_LOOPS * len(parts) < len(gather.table)
    return Copies(parts, zeros) if cheaper else gather


def _plan_loops(places: Tensor, steps: list[int], to: int) -> Copy | None:
    """Plan nested loops for places that lie at `to` in the result; None where these fail.

    Args:
        places: Places in the source; -1 for zeros.
        steps: What an index of each dimension moves in the result.
        to: Place of the first element in the result.
    """
    kept = [_find_kept(places, dim) for dim in range(places.dim())]
    count = int((places >= 0).sum())
    if count == 0 or prod(map(len, kept)) != count:
        return None
    chosen = places
    for dim, indices in enumerate(kept):
        chosen = chosen.index_select(dim, indices)
    axes = _separate(chosen)
    if axes is None:
        return None
    first = sum(step * int(indices[0]) for step, indices in zip(steps, kept, strict=True))
    loops = [
        Axis((indices - indices[0]) * step, origin)
        for step, indices, origin in zip(steps, kept, axes, strict=True)
    ]
    return _merge(loops, to + first, int(chosen.flatten()[0]))


def _cut(places: Tensor, steps: list[int], dim: int) -> tuple[Copy, ...] | None:
    """Cut places along a dimension into few parts that loops can copy; None where many remain."""
    parts: list[Copy] = []
    start, size = 0, places.shape[dim]
    while start < size:
        if len(parts) == _MOST_PARTS:
            return None
        # Whatever is part of what loops can copy is so itself: the longest is found by halves.
        low, high, best = start, size, None
        while low < high:
            middle = (low + high + 1) // 2
            part = places.narrow(dim, start, middle - start)
            planned = _plan_loops(part, steps, start * steps[dim])
            if planned is None and bool((part >= 0).any()):
                high = middle - 1
            else:
                low, best = middle, planned
        if low == start:
            return None
        parts += [] if best is None else [best]
        start = low
    return tuple(parts)


def find_zero_padding(view: View) -> tuple[View, int, int] | None:
    """Find the maps that a view surrounds by zeros.

    Args:
        view: View of a buffer, … × height × width.

    Returns:
        View of neighbours without the zeros, and how many rows of zeros lie above and columns to
        the left of it; None where it is anything else, or has no zeros.
    """
    places = view.places
    if places.dim() != 4 or bool((places >= 0).all()):
        return None
    rows, columns = _find_kept(places, 2), _find_kept(places, 3)
    if not len(rows) or not len(columns):
        return None
    top, left = int(rows[0]), int(columns[0])
    inner = View(view.buffer, places[:, :, top : int(rows[-1]) + 1, left : int(columns[-1]) + 1])
    return None if inner.start is None else (inner, top, left)


def _find_kept(places: Tensor, dim: int) -> Tensor:
    """Find the indices of a dimension at which there is anything but zeros."""
    rows = (places >= 0).movedim(dim, 0).flatten(1) if places.dim() > 1 else (places >= 0)[:, None]
    return torch.nonzero(rows.any(dim=1)).flatten()


def _separate(places: Tensor) -> list[Tensor] | None:
    """Write places as the first one plus an offset for each index; None where that fails."""
    first = places.flatten()[0]
    offsets = []
    total = first
    for dim in range(places.dim()):
        line = places
        for other in reversed([k for k in range(places.dim()) if k != dim]):
            line = line.select(other, 0)
        offsets.append(line - first)
        total = total + offsets[-1].view([-1 if k == dim else 1 for k in range(places.dim())])
    return offsets if torch.equal(total.expand(places.shape), places) else None


def _merge(loops: list[Axis], to: int, origin: int) -> Copy:
    """Make runs of the innermost loops, and one loop of two that are as one."""
    run, axes = 1, [axis for axis in loops if axis.count > 1]
    while axes and axes[-1].strides == (run, run):
        run *= axes.pop().count
    merged: list[Axis] = []
    for axis in axes:
        joined = _join(merged[-1], axis) if merged else None
        if joined is not None:
            merged[-1] = joined
        else:
            merged.append(axis)
    return Copy(tuple(merged), to, origin, run, zeros=False)


def _join(outer: Axis, inner: Axis) -> Axis | None:
    if None in (*outer.strides, *inner.strides):
        return None
    to, origin = (
        (first[:, None] + second).flatten()
        for first, second in ((outer.to, inner.to), (outer.origin, inner.origin))
    )
    joined = Axis(to, origin)
    return None if None in joined.strides else joined


def _find_stride(offsets: Tensor) -> int | None:
    steps = offsets.diff()
    if len(steps) == 0:
        return 0
    return int(steps[0]) if bool((steps == steps[0]).all()) else None


def _plan_gather(places: Tensor, zeros: bool) -> Gather:
    """Take the longest runs that all values can be cut into."""
    # Zeros continue zeros; anything else continues its neighbour.
    continues = torch.where(
        places[1:] < 0, places[:-1] < 0, (places[:-1] >= 0) & (places.diff() == 1)
    )
    starts = torch.cat([torch.zeros(1).long(), torch.nonzero(~continues).flatten() + 1])
    run = gcd(*starts.tolist(), len(places))
    return Gather(places[::run], run, zeros)
