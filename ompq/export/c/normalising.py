"""Softmax and norms as steps: rows of values, each of which tells what all of it become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from ompq.export.c.program import Bounds, Task


@dataclass(frozen=True)
class Rows(Task):
    """What is computed of rows of neighbours.

    Attributes:
        outer: Rows.
        length: Values of a row.
    """

    outer: int
    length: int


@dataclass(frozen=True)
class Softmax(Rows):
    """Exponentials of differences to a row's largest value, divided by their sum.

    Attributes:
        one: Exponential of no difference.
        table: Exponentials of the steps from the first on, int64, below 2^16.
        multiplier: Factor that makes steps of differences, times 2^shift.
        shift: See `multiplier`.
        bits: Bits behind the point of results, and one more.
    """

    one: int
    table: Tensor
    multiplier: int
    shift: int
    bits: int

    @property
    def bounds(self) -> Bounds:
        """Return what results lie between."""
        return 0, 2 ** (self.bits - 1)


@dataclass(frozen=True)
class Norm(Rows):
    """Values divided by the root of the sum of a row's squares.

    Attributes:
        places: Places by which values are shifted before that, to the left; or to the right.
        centred: Whether their mean is subtracted.
        eps: What is added to the sum of squares.
        spare: Places by which that is shifted to the left for its root.
        factor: What values are multiplied by before they are divided.
    """

    places: int
    centred: bool
    eps: int
    spare: int
    factor: int

    @property
    def bounds(self) -> Bounds:
        """Return what results lie between: no value exceeds the root, which is rounded down."""
        reach = (2 * self.factor >> self.spare // 2) + 1
        return -reach, reach


def read_softmax(numbers: Mapping[str, Tensor], path: str, shape: Sequence[int]) -> Softmax:
    """Read a softmax over the last dimension.

    Args:
        numbers: Integers by name.
        path: Path of the operation.
        shape: Shape of the value.
    """
    table, scale = numbers[f"{path}.table"].long(), float(numbers[f"{path}.scale"])
    bits = round(1 / scale).bit_length()
    multiplier, shift = (int(numbers[f"{path}.{name}"]) for name in ("multiplier", "shift"))
    sizes = prod(shape[:-1]), shape[-1]
    return Softmax(*sizes, int(table[0]), table[1:], multiplier, shift, bits)


def read_norm(
    numbers: Mapping[str, Tensor], path: str, sizes: tuple[int, int], places: int, centred: bool
) -> Norm:
    """Read a norm of rows.

    Args:
        numbers: Integers by name.
        path: Path of the operation.
        sizes: Number of rows, and values of each.
        places: Places by which values are shifted to the left.
        centred: Whether their mean is subtracted.
    """
    eps, spare, factor = (int(numbers[f"{path}.{name}"]) for name in ("eps", "root", "factor"))
    return Norm(*sizes, places, centred, eps, spare, factor)


def move_last(rank: int, dims: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the order of dimensions that puts some of them last, and the one that undoes it.

    >>> move_last(4, (1,))
    ([0, 2, 3, 1], [0, 3, 1, 2])
    """
    order = [dim for dim in range(rank) if dim not in dims] + sorted(dims)
    return order, sorted(range(rank), key=order.__getitem__)
