"""Orders of elements recognised as what operators do: digits exchanged, choices per dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Exchange:
    """A permutation of elements that exchanges the dimensions of some shape.

    Attributes:
        shape: Sizes of the dimensions of the source.
        order: Which of them comes first in the result, which second, ….
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class Selection:
    """A choice along every dimension of the source, and the order of the dimensions then.

    Attributes:
        picks: Per dimension of the source, which of its places are taken, in order.
        order: Which of the source's dimensions comes first in the result, which second, ….
    """

    picks: tuple[Places, ...]
    order: tuple[int, ...]

    def takes_all(self, shape: Sequence[int]) -> bool:
        """Tell whether every place of a source of this shape is taken, in its order."""
        pairs = zip(self.picks, shape, strict=True)
        return all(np.array_equal(taken, np.arange(size)) for taken, size in pairs)


@dataclass(frozen=True)
class Border:
    """Zeros around elements that have places.

    Attributes:
        before: Per dimension, how many zeros come first.
        after: Per dimension, how many come last.
        inner: Places of the elements within; none is -1.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    inner: Places


def find_exchange(places: Places, count: int) -> Exchange | None:
    """Find the dimensions that a permutation exchanges.

    Args:
        places: Place in the source of every element of the result, any shape.
        count: Number of elements of the source.

    Returns:
        The dimensions and their order; None where there are none, or elements are left out.

    >>> find_exchange(np.arange(6).reshape(2, 3).T, 6)
    Exchange(shape=(2, 3), order=(1, 0))
    >>> find_exchange(np.arange(6), 6)
    Exchange(shape=(6,), order=(0,))
    """
    flat = places.ravel()
    if flat.size != count or count == 0 or flat[0] != 0:
        return None
    sizes: list[int] = []
    strides: list[int] = []
    while flat.size > 1:
        step = flat[1] - flat[0]
        breaks = np.flatnonzero(np.diff(flat) != step) + 1
        # Blocks of this size, the largest there is, go up by equal steps.
        size = int(np.gcd.reduce(np.append(breaks, flat.size)))
        if size < 2 or step <= 0:
            return None
        sizes.insert(0, size)
        strides.insert(0, int(step))
        flat = flat[::size]
    if not sizes:
        return Exchange((count,), (0,))
    inwards = sorted(range(len(sizes)), key=lambda digit: -strides[digit])
    shape = tuple(sizes[digit] for digit in inwards)
    nested = all(strides[digit] == prod(shape[depth + 1 :]) for depth, digit in enumerate(inwards))
    if not nested or prod(shape) != count:
        return None
    return Exchange(shape, tuple(inwards.index(digit) for digit in range(len(sizes))))


def find_selection(places: Places, shape: Sequence[int]) -> Selection | None:
    """Find which elements are taken along every dimension of the source.

    Args:
        places: Place in the source of every element of the result, any shape; none is -1.
        shape: Shape of the source.

    Returns:
        The choice; None where it is not made along every dimension by itself.

    >>> chosen = find_selection(np.array([[5, 4], [2, 1]]), (2, 3))
    >>> [picks.tolist() for picks in chosen.picks], chosen.order
    ([[1, 0], [2, 1]], (0, 1))
    """
    if places.size == 0 or not shape:
        return None
    picks, axes = [], []
    for coordinates in np.unravel_index(places, tuple(shape)):
        varying = [axis for axis in range(places.ndim) if _varies(coordinates, axis)]
        if len(varying) > 1:
            return None
        axes.append(varying[0] if varying else None)
        along = [slice(None) if axis in varying else 0 for axis in range(places.ndim)]
        picks.append(np.atleast_1d(coordinates[tuple(along)]).astype(np.int64))
    used = [axis for axis in axes if axis is not None]
    needed = [axis for axis, size in enumerate(places.shape) if size > 1]
    if sorted(used) != needed:
        return None
    return Selection(tuple(picks), _order_dimensions(axes))


def find_border(places: Places) -> Border | None:
    """Find the zeros around the elements that have places.

    Args:
        places: Place in the source of every element of the result, -1 for a zero.

    Returns:
        The border; None where zeros lie elsewhere, or there is nothing else.

    >>> find_border(np.array([-1, 0, 1])).before
    (1,)
    """
    filled = places >= 0
    before, after, box = [], [], []
    for axis in range(places.ndim):
        others = tuple(other for other in range(places.ndim) if other != axis)
        there = np.flatnonzero(filled.any(axis=others))
        if there.size == 0:
            return None
        first, last = int(there[0]), int(there[-1])
        before.append(first)
        after.append(places.shape[axis] - 1 - last)
        box.append(slice(first, last + 1))
    inner = places[tuple(box)]
    if bool((inner < 0).any()):
        return None
    return Border(tuple(before), tuple(after), inner)


def find_range(picks: Places) -> slice | None:
    """Find the slice that takes these places; None where there is none with a positive step.

    >>> find_range(np.array([1, 3, 5]))
    slice(1, 6, 2)
    """
    first, last = int(picks[0]), int(picks[-1])
    step = int(picks[1]) - first if picks.size > 1 else 1
    regular = step > 0 and np.array_equal(picks, np.arange(first, last + 1, step))
    return slice(first, last + 1, step) if regular else None


def _varies(coordinates: NDArray[Any], axis: int) -> bool:
    first = coordinates.take([0], axis=axis)
    return bool((coordinates != first).any())


def _order_dimensions(axes: Sequence[int | None]) -> tuple[int, ...]:
    """Order the source's dimensions by those of the result that they become.

    Dimensions of which one place is taken stay where they are, as they change nothing.
    """
    moving = iter(
        sorted(
            (dim for dim, axis in enumerate(axes) if axis is not None),
            key=lambda dim: axes[dim] or 0,
        )
    )
    return tuple(dim if axis is None else next(moving) for dim, axis in enumerate(axes))
