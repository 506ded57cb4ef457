"""Operations between layers on integers, exact in float64: tables, lines, products, softmax, norms.

Quotients are rounded to nearest by a division and a floor, which are exact of integers below 2^52:
a quotient that is no integer is further from one than float64 rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from torch.fx import Node

from ompq.errors import OmpqError
from ompq.export.onnx.builder import INPUT_NAME
from ompq.export.onnx.survey import survey
from ompq.export.onnx.walker import Walker
from ompq.export.onnx.whole import Arithmetic, Whole
from ompq.graph.layout import ImageLayout
from ompq.graph.operations import image_layout, tensor_shape
from ompq.integer.network import locate
from ompq.integer.normalisation import IntegerNorm
from ompq.integer.operations import IntegerOperation
from ompq.integer.pointwise import IntegerAffine, LookupTable
from ompq.integer.products import IntegerProduct
from ompq.integer.softmax import IntegerSoftmax

# Larger constants are in a file as int32, and cast as it is loaded.
_LARGEST_WIDE = 64
Integers = NDArray[Any]


def write_operation(
    arithmetic: Arithmetic, node: Node, operation: IntegerOperation, values: Sequence[Whole]
) -> Whole:
    """Write an operation that has an integer form of its own.

    Args:
        arithmetic: What writes into the graph, and holds the operation's integers.
        node: Node that calls it.
        operation: The operation.
        values: What it reads.

    Raises:
        OmpqError: It has no form in ONNX; names it.
    """
    name = node.name
    if isinstance(operation, LookupTable):
        entries = _read(arithmetic, node, "table")
        looked_up = look_up(arithmetic, node, operation, values[0], entries.astype(np.int16))
        return Whole((arithmetic.cast(looked_up, name),))
    widened = [arithmetic.widen(value, name) for value in values]
    if isinstance(operation, IntegerAffine):
        return Whole((_write_line(arithmetic, node, widened[0]),))
    if isinstance(operation, IntegerProduct):
        function = operation.function
        walker = Walker(arithmetic.builder, function, survey(function), INPUT_NAME)
        return Whole((walker.run(widened),))
    if isinstance(operation, IntegerSoftmax):
        return Whole((_write_softmax(arithmetic, node, operation, widened[0]),))
    if isinstance(operation, IntegerNorm):
        return Whole((_write_norm(arithmetic, node, operation, widened[0]),))
    raise OmpqError(f"{locate(node)} has no form in ONNX on integers alone")


def look_up(
    arithmetic: Arithmetic, node: Node, operation: LookupTable, x: Whole, entries: Integers
) -> str:
    """Write what becomes of integers by a table; return its name, of the entries' type.

    Args:
        arithmetic: What writes into the graph, and holds the operation's integers.
        node: Node that calls the operation.
        operation: The operation.
        x: What it reads.
        entries: Its table, or what is made of it: channels × levels.
    """
    builder, name = arithmetic.builder, node.name
    zero = int(_read(arithmetic, node, "first")) + (x.zero_point or 0)
    places = x.name
    if x.zero_point is None and zero:
        places, zero = arithmetic.compute("Sub", places, zero, name), 0
    places = arithmetic.cast(places, name, TensorProto.INT32)
    # What bytes hold for the first level, mostly 0, and where the entries of a channel begin.
    starts = np.full((), -zero, dtype=np.int32)
    if bool((entries == entries[:1]).all()):
        entries = entries[:1]
    else:
        channels = np.arange(len(entries), dtype=np.int32) * entries.shape[1]
        starts = starts + channels.reshape(operation.nature.shape)
    if starts.any():
        places = builder.add("Add", [places, builder.constant(starts.astype(np.int32))], name)
    table = arithmetic.hold(entries.flatten(), f"{name}.table")
    return builder.add("Gather", [table, places], name)


def _write_line(arithmetic: Arithmetic, node: Node, x: str, factor: str = "multiplier") -> str:
    """Write a multiplication by the numbers of a name, and an addition, which broadcast."""
    for kind, which in (("Mul", factor), ("Add", "offset")):
        numbers = _read(arithmetic, node, which)
        if bool((numbers == numbers.flat[0]).all()):
            numbers = numbers.flatten()[:1].reshape(())
        if kind == "Add" and not numbers.any():
            continue
        if numbers.size <= _LARGEST_WIDE:
            x = arithmetic.compute(kind, x, numbers, node.name)
        else:
            held = arithmetic.hold(numbers.astype(np.int32), f"{node.name}.{which}")
            x = arithmetic.builder.add(kind, [x, arithmetic.cast(held, node.name)], node.name)
    return x


def _write_softmax(arithmetic: Arithmetic, node: Node, operation: IntegerSoftmax, x: str) -> str:
    """Write a softmax: exponentials looked up, and divided by their sum."""
    builder, name = arithmetic.builder, node.name
    table, scale = (_read(arithmetic, node, which) for which in ("table", "scale"))
    dims = builder.constant(np.array([operation.dim]))
    below = builder.add("Sub", [builder.add("ReduceMax", [x, dims], name), x], name)
    steps = arithmetic.rescale(below, str(node.target), name)
    steps = arithmetic.compute("Min", steps, len(table) - 1, name)
    held = arithmetic.hold(table.astype(np.int32), f"{name}.table")
    places = arithmetic.cast(steps, name, TensorProto.INT32)
    exponentials = arithmetic.cast(builder.add("Gather", [held, places], name), name)
    total = builder.add("ReduceSum", [exponentials, dims], name)
    return _divide(arithmetic, arithmetic.compute("Div", exponentials, scale, name), total, name)


def _write_norm(arithmetic: Arithmetic, node: Node, operation: IntegerNorm, x: str) -> str:
    """Write a norm: values, less their mean, divided by the root of the sum of their squares."""
    builder, name, norm = arithmetic.builder, node.name, operation.norm
    eps, spare, factor = (
        int(_read(arithmetic, node, which)) for which in ("eps", "root", "factor")
    )
    dims = builder.constant(np.array(norm.dims))
    places = operation.shift
    x = arithmetic.compute("Mul", x, 2.0**places, name)
    if places < 0:
        x = builder.add("Floor", [arithmetic.compute("Add", x, 0.5, name)], name)
    if norm.groups:
        x = _reshape(arithmetic, node, x, norm.groups)
    if norm.centred:
        total = builder.add("ReduceSum", [x, dims], name)
        count = builder.constant(np.float64(operation.count))
        x = builder.add("Sub", [x, _divide(arithmetic, total, count, name)], name)
    squares = builder.add("ReduceSum", [builder.add("Mul", [x, x], name), dims], name)
    squares = arithmetic.compute("Add", squares, eps, name)
    root = builder.add("Sqrt", [arithmetic.compute("Mul", squares, 2.0**spare, name)], name)
    root = arithmetic.compute("Max", builder.add("Floor", [root], name), 1, name)
    x = _divide(arithmetic, arithmetic.compute("Mul", x, factor, name), root, name)
    if norm.groups:
        x = _reshape(arithmetic, node, x)
    return _write_line(arithmetic, node, x, "gain")


def _reshape(arithmetic: Arithmetic, node: Node, x: str, groups: int = 0) -> str:
    """Write a value in the shape of a node's, its channels (dimension 1) in groups or not."""
    shape = list(tensor_shape(node) or ())
    shape[(image_layout(node) or ImageLayout()).dim] = -1
    if groups:
        shape[1:2] = [groups, shape[1] // groups]
    sizes = arithmetic.builder.constant(np.array(shape))
    return arithmetic.builder.add("Reshape", [x, sizes], node.name)


def _divide(arithmetic: Arithmetic, x: str, by: str, name: str) -> str:
    """Write a division rounded to nearest, halves upwards; the divisor is positive."""
    doubled, divisor = (arithmetic.compute("Mul", value, 2, name) for value in (x, by))
    upper = arithmetic.builder.add("Add", [doubled, by], name)
    quotient = arithmetic.builder.add("Div", [upper, divisor], name)
    return arithmetic.builder.add("Floor", [quotient], name)


def _read(arithmetic: Arithmetic, node: Node, which: str) -> Integers:
    """Read the numbers of an operation by their name."""
    found = arithmetic.read(f"{node.target}.{which}")
    assert found is not None
    return found
