"""Operations between layers as things that are done to results: tables, lines and products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor
from torch.fx import GraphModule

from ompq.export.arrangements import find_places
from ompq.export.c.program import Action, Bounds, Channels, Operand


@dataclass(frozen=True)
class Table(Action):
    """Results that are looked up in a table, of their channel or of all.

    Attributes:
        entries: What results become, int64, one or channels × levels.
        first: The result that the first entry is for.
    """

    entries: Tensor
    first: int

    @property
    def keeps_zero(self) -> bool:
        """Tell whether 0 stays 0, wherever it is."""
        return 0 in self.levels and not bool(self.entries[:, -self.first].any())

    @property
    def levels(self) -> range:
        """Return the results that there are entries for."""
        return range(self.first, self.first + self.entries.shape[1])

    def apply(self, values: Tensor) -> Tensor:
        """Look up integers, int64, … × channels."""
        return self.entries[torch.arange(len(self.entries)), values - self.first]

    def bound(self, bounds: Bounds) -> Bounds:
        """Return what results lie between that lay between others before."""
        low, high = bounds
        reached = self.entries[:, low - self.first : high - self.first + 1]
        return int(reached.min()), int(reached.max())


@dataclass(frozen=True)
class Line(Action):
    """Results that are multiplied, and added to.

    Attributes:
        multiplier: What they are multiplied by, int64, one or one per channel.
        offset: What is added to them, int64, one or one per channel.
    """

    multiplier: Tensor
    offset: Tensor

    @property
    def keeps_zero(self) -> bool:
        """Tell whether 0 stays 0, wherever it is."""
        return not bool(self.offset.any())

    def apply(self, values: Tensor) -> Tensor:
        """Multiply integers, int64, … × channels, and add to them."""
        return values * self.multiplier + self.offset

    def bound(self, bounds: Bounds) -> Bounds:
        """Return what results lie between that lay between others before."""
        ends = torch.stack([self.apply(torch.tensor([bound])) for bound in bounds])
        return int(ends.min()), int(ends.max())


@dataclass(frozen=True)
class Times(Action):
    """Results that are multiplied by those of another value.

    Attributes:
        operand: The other value.
    """

    operand: Operand

    @property
    def keeps_zero(self) -> bool:
        """Tell whether 0 stays 0, wherever it is: a product's place tells its other factor."""
        return False

    def bound(self, bounds: Bounds) -> Bounds:
        """Return what results lie between that lay between others before."""
        ends = [a * b for a, b in product(bounds, self.operand.region.buffer.bounds)]
        return min(ends), max(ends)


def read_table(
    numbers: Mapping[str, Tensor], path: str, own: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[Table, Channels | None]:
    """Read a table, and where the channels of what is looked up are.

    Args:
        numbers: Integers by name.
        path: Path of the operation.
        own: Shape of its tables, which broadcasts to the value's.
        shape: Shape of what is looked up.
    """
    entries = numbers[f"{path}.table"].long()
    first = int(numbers[f"{path}.first"])
    if bool((entries == entries[:1]).all()):
        return Table(entries[:1], first), None
    return Table(entries, first), find_channels(own, shape)


def read_line(
    multiplier: Tensor, offset: Tensor, shape: tuple[int, ...]
) -> tuple[Line, Channels | None]:
    """Read what a value is multiplied by and what is added to it, and where its channels are.

    Args:
        multiplier: What it is multiplied by, of a shape that broadcasts to the value's.
        offset: What is added to it, of a shape that broadcasts to the value's.
        shape: Shape of the value.
    """
    held = [_narrow(multiplier.long()), _narrow(offset.long())]
    channels = find_channels(tuple(torch.broadcast_shapes(*(one.shape for one in held))), shape)
    return Line(*(_spread(one, channels, shape) for one in held)), channels


def find_factors(function: GraphModule, shapes: Sequence[tuple[int, ...]]) -> list[Tensor] | None:
    """Find which elements of two values every result of a product is made of.

    Args:
        function: The product, in float.
        shapes: Shapes of both values for one image.

    Returns:
        Places in either value, of the result's shape; None where results are no single products.
    """
    found: list[Tensor] = []
    for place in range(2):
        ones = [torch.ones(shape, dtype=torch.float64) for shape in shapes]

        def run(value: Tensor, place: int = place, ones: list[Tensor] = ones) -> Tensor:
            ones[place] = value.double()
            result: Tensor = function(*ones)
            return result

        places = find_places(torch.zeros(shapes[place]), run)
        if places is None or bool((places[0] < 0).any()):
            return None
        found += places
    return found


def find_spread(places: Tensor, count: int) -> Channels | None:
    """Find how the places that results read follow one another.

    Args:
        places: Place that each result reads, int64.
        count: How many places there are.

    >>> find_spread(torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]]), 2)
    Channels(count=2, inner=2)
    """
    flat = places.flatten()
    moves = torch.nonzero(flat.diff())
    inner = int(moves[0]) + 1 if len(moves) else len(flat)
    expected = torch.arange(len(flat)) // inner % count
    return Channels(count, inner) if torch.equal(flat, expected) else None


def find_channels(own: tuple[int, ...], shape: tuple[int, ...]) -> Channels | None:
    """Find the dimensions of a value along which numbers differ, all between them included.

    Args:
        own: Shape of the numbers, which broadcasts to the value's.
        shape: Shape of the value.

    >>> find_channels((8, 1, 1), (1, 8, 5, 5))
    Channels(count=8, inner=25)
    """
    wide = [dim for dim in range(-len(own), 0) if own[dim] > 1]
    if not wide:
        return None
    first, last = len(shape) + wide[0], len(shape) + wide[-1] + 1
    return Channels(prod(shape[first:last]), prod(shape[last:]))


def _narrow(numbers: Tensor) -> Tensor:
    """Return numbers with 1 for the size of every dimension along which they do not differ."""
    for dim in range(numbers.dim()):
        first = numbers.narrow(dim, 0, 1)
        numbers = first if bool((numbers == first).all()) else numbers
    return numbers


def _spread(numbers: Tensor, channels: Channels | None, shape: tuple[int, ...]) -> Tensor:
    """Return numbers flat, one for all channels or one per channel."""
    if channels is None or numbers.numel() == 1:
        return numbers.flatten()
    whole = numbers.broadcast_to(shape).flatten()
    return whole[: channels.count * channels.inner : channels.inner]
