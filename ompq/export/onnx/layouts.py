"""Operations that only arrange values, as operators of ONNX, whatever the values' type.

What such an operation does is read from the places of its elements, not from its name: where they
are exchanged, chosen per dimension or set into zeros, a Transpose, Slice, Gather or Pad does it;
else a Gather of single elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule, Node

from ompq.errors import OmpqError
from ompq.export.onnx.builder import GraphBuilder
from ompq.export.onnx.orders import (
    Exchange,
    Places,
    Selection,
    find_border,
    find_exchange,
    find_range,
    find_selection,
)
from ompq.graph.arguments import read_arguments
from ompq.graph.layout import ImageLayout
from ompq.graph.operations import carries_values, operation, tensor_shape
from ompq.integer.network import locate

# What is written in the place of a zero: of a quantized value, its zero point; of a value's type.
Zero = NDArray[Any] | np.generic


@dataclass(frozen=True)
class Arrangement:
    """Where the elements of a value come from, for one image.

    Attributes:
        places: Place of each element in the source, -1 for a zero; of the result's shape.
        shape: Shape of the source.
        before: Where the images are in the source.
        after: Where the images are in the result.
    """

    places: Places
    shape: tuple[int, ...]
    before: ImageLayout = field(default_factory=ImageLayout)
    after: ImageLayout = field(default_factory=ImageLayout)


class Arranger:
    """Writes the operations of a network that arrange values.

    Args:
        builder: Graph that they are added to.
        module: Network whose operations they are.
        places: Node name → places of its elements, of `trace_arrangements`.
    """

    def __init__(
        self,
        builder: GraphBuilder,
        module: GraphModule,
        places: Mapping[str, Sequence[Tensor]],
    ) -> None:
        self.builder, self.module, self.places = builder, module, places

    def arrange(self, node: Node, values: Sequence[str], zero: Zero) -> list[str]:
        """Write an operation that arranges the values of one other node.

        Args:
            node: The operation, whose form is ARRANGE.
            values: Names of what it reads; several where it reads a tuple (a chunk's pieces).
            zero: What stands for zero, of the values' type: their zero point.

        Returns:
            Names of what it gives; several where that is a tuple.

        Raises:
            OmpqError: Where the elements come from, or where images are, cannot be told.
        """
        piece = self._find_piece(node)
        if piece is not None and len(values) > 1:
            return [values[piece]]
        found = self.places.get(node.name)
        source = next((each for each in node.all_input_nodes if carries_values(each)), None)
        if found is None or source is None:
            raise self._refuse(node, "where its elements come from cannot be told")
        shapes, layout = self._find_shapes(source), self._find_layout(source)
        if layout is None or len(shapes) != len(values):
            raise self._refuse(node, "where the images are in its input cannot be told")
        names = []
        for number, part in enumerate(found):
            after = self._find_layout(node, number)
            if after is None:
                raise self._refuse(node, "where the images are in its value cannot be told")
            arrangement = Arrangement(part.numpy(), shapes[0], layout, after)
            value = values[0]
            if len(values) > 1:
                value, arrangement = self._read_pieces(values, shapes, arrangement)
            names.append(arrange_one(self.builder, value, arrangement, zero, node.name))
        return names

    def _read_pieces(
        self, values: Sequence[str], shapes: Sequence[tuple[int, ...]], wanted: Arrangement
    ) -> tuple[str, Arrangement]:
        """Read an arrangement from the only piece that it is of, or from all pieces in a row."""
        places, layout = wanted.places, wanted.before
        starts = np.cumsum([0, *map(prod, shapes)])
        low, high = places[places >= 0].min(initial=starts[-1]), places.max(initial=-1)
        for number, value in enumerate(values):
            if starts[number] <= low and high < starts[number + 1]:
                shifted = np.where(places < 0, -1, places - starts[number])
                return value, replace(wanted, places=shifted, shape=shapes[number])
        rows = []
        for value, shape in zip(values, shapes, strict=True):
            flat = Arrangement(np.arange(prod(shape)).reshape(1, -1), shape, layout)
            rows.append(arrange_one(self.builder, value, flat, np.uint8(0), "pieces"))
        row = self.builder.add("Concat", rows, "pieces", axis=1)
        return row, replace(wanted, shape=(1, int(starts[-1])), before=ImageLayout())

    def _find_piece(self, node: Node) -> int | None:
        """Find which piece of a tuple an operation takes."""
        name, arguments = operation(node, self.module), read_arguments(node, self.module)
        index = arguments.get("index")
        if name == "getattr" and arguments.get("name") in ("values", "indices"):
            return 0 if arguments["name"] == "values" else 1
        return index if name == "getitem" and isinstance(index, int) else None

    def _find_shapes(self, source: Node) -> list[tuple[int, ...]]:
        """Find the shapes of the tensors of a node's value for one image."""
        shape = tensor_shape(source)
        if shape is not None:
            return [shape]
        return [tuple(part.shape) for part in self.places.get(source.name, ())]

    def _find_layout(self, node: Node, number: int = 0) -> ImageLayout | None:
        """Find where the images are in a node's value, or in a piece of its tuple."""
        if tensor_shape(node) is not None:
            layout: ImageLayout | None = node.meta.get("layout", ImageLayout())
            return layout
        takers = [user for user in node.users if self._find_piece(user) is not None]
        takers.sort(key=lambda user: self._find_piece(user) != number)
        for taker in takers:
            if tensor_shape(taker) is not None:
                return self._find_layout(taker)
        pieces = self.places.get(node.name, ())
        return ImageLayout() if all(part.shape[:1] == (1,) for part in pieces) else None

    def _refuse(self, node: Node, reason: str) -> OmpqError:
        place, name = locate(node), operation(node, self.module)
        return OmpqError(f"{place} ({name}) has no form in ONNX: {reason}")


def arrange_one(
    builder: GraphBuilder, value: str, arrangement: Arrangement, zero: Zero, name: str
) -> str:
    """Write an arrangement of one value, for any number of images.

    Args:
        builder: Graph that operators are added to.
        value: Name of the source.
        arrangement: Where elements come from.
        zero: What stands for zero, of the value's type.
        name: Name that the operators should have.

    Returns:
        The name of the arranged value.
    """
    places, shape, before = arrangement.places, arrangement.shape, arrangement.before
    kept = np.array_equal(places.ravel(), np.arange(prod(shape)))
    if kept and places.shape == tuple(shape) and before == arrangement.after:
        return value
    writer = _Writer(builder, value, name)
    writer.put_images_first(shape, before)
    # Elements in the order that they have with images first, before and after.
    numbers = _split(np.arange(prod(shape)).reshape(shape), before)
    renumbered = np.full(prod(shape) + 1, -1)
    renumbered[numbers.ravel()] = np.arange(prod(shape))
    wanted = renumbered[_split(places, arrangement.after)]
    writer.take(wanted, numbers.shape, zero)
    writer.put_images_back(wanted.shape, arrangement.after)
    return writer.value


class _Writer:
    """Arranges a value step by step; its images lie along the first dimension.

    Attributes:
        value: Name of the value so far.
        shape: Its shape for one image; None where rows of an image are among the images.
    """

    def __init__(self, builder: GraphBuilder, value: str, name: str) -> None:
        self.builder, self.value, self.name = builder, value, name
        self.shape: tuple[int, ...] | None = None

    def put_images_first(self, shape: tuple[int, ...], layout: ImageLayout) -> None:
        """Move the images into the first dimension, interleaved rows of theirs into the second."""
        dims = len(shape)
        others = [dim for dim in range(dims) if dim != layout.dim]
        self._transpose([layout.dim, *others])
        rest = [shape[dim] for dim in others]
        if layout.rows == 1:
            self.shape = tuple(rest)
        elif layout.interleaved:
            self._write("Reshape", _list(layout.rows, -1, *rest))
            self._transpose([1, 0, *range(2, dims + 1)])
            self.shape = (layout.rows, *rest)

    def put_images_back(self, shape: tuple[int, ...], layout: ImageLayout) -> None:
        """Move the images to where the network has them, from a value of `shape` for one image."""
        dims = len(shape) + 1
        if layout.rows > 1:
            if layout.interleaved:
                self._transpose([1, 0, *range(2, dims)])
            self._write("Reshape", _list(-1, *shape[1:]))
            dims -= 1
        # The images go from the first dimension to their own.
        self._transpose([*range(1, layout.dim + 1), 0, *range(layout.dim + 1, dims)])

    def take(self, places: Places, shape: tuple[int, ...], zero: Zero) -> None:
        """Take elements of a value of `shape` for one image; -1 stands for a zero."""
        border = find_border(places) if bool((places < 0).any()) else None
        inner = places if border is None else border.inner
        exchange = find_exchange(inner, prod(shape))
        choice = find_selection(inner, shape) if border or not (inner < 0).any() else None
        if choice is not None and (exchange is None or choice.takes_all(shape)):
            self._select(choice, shape)
        elif exchange is not None:
            self._exchange(exchange)
        else:
            self._gather(inner, prod(shape), zero)
        self._reshape(inner.shape)
        if border is not None:
            pads = _list(0, *border.before, 0, *border.after)
            self._write("Pad", pads, np.asarray(zero).reshape(()))
            self.shape = places.shape

    def _exchange(self, found: Exchange) -> None:
        """Write a permutation that exchanges dimensions."""
        if found.order != tuple(range(len(found.order))):
            self._reshape(found.shape)
            self._transpose([0, *(dim + 1 for dim in found.order)])
            self.shape = tuple(found.shape[dim] for dim in found.order)

    def _select(self, found: Selection, shape: tuple[int, ...]) -> None:
        """Write a choice along every dimension by itself."""
        self._reshape(shape)
        for dim, picks in enumerate(found.picks):
            if not np.array_equal(picks, np.arange(shape[dim])):
                self._pick(picks, dim + 1)
        self._transpose([0, *(dim + 1 for dim in found.order)])
        self.shape = tuple(found.picks[dim].size for dim in found.order)

    def _pick(self, picks: Places, axis: int) -> None:
        """Write the choice of places along one dimension."""
        taken = find_range(picks)
        if taken is None:
            self._write("Gather", picks, axis=axis)
        else:
            bounds = (taken.start, taken.stop, axis, taken.step)
            self._write("Slice", *(_list(bound) for bound in bounds))

    def _gather(self, places: Places, count: int, zero: Zero) -> None:
        """Write the choice of single elements."""
        self._reshape((count,))
        if bool((places < 0).any()):
            # A zero in front of the others, which the place -1 is counted up to.
            self._write("Pad", _list(0, 1, 0, 0), np.asarray(zero).reshape(()))
            places = places + 1
        self._write("Gather", places.ravel(), axis=1)
        self.shape = (places.size,)

    def _reshape(self, shape: Sequence[int]) -> None:
        if self.shape != tuple(shape):
            self._write("Reshape", _list(-1, *shape))
            self.shape = tuple(shape)

    def _transpose(self, order: list[int]) -> None:
        if order != list(range(len(order))):
            self._write("Transpose", perm=order)

    def _write(self, kind: str, *constants: Zero, **attributes: Any) -> None:
        names = [self.builder.constant(constant) for constant in constants]
        self.value = self.builder.add(kind, [self.value, *names], self.name, **attributes)


def _list(*numbers: int) -> Places:
    """Return numbers as operators read shapes and axes: int64."""
    return np.array(numbers, dtype=np.int64)


def _split(places: Places, layout: ImageLayout) -> Places:
    """Arrange a value for one image as it is with images first, without their dimension."""
    moved = np.moveaxis(places, layout.dim, 0)
    return moved if layout.rows > 1 else moved[0]
