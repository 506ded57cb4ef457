"""Operations between layers on integers: tables, lines and products, exact in float64."""

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
from ompq.integer.network import locate
from ompq.integer.operations import IntegerOperation
from ompq.integer.pointwise import IntegerAffine, LookupTable
from ompq.integer.products import IntegerProduct

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
        entries = arithmetic.read(f"{node.target}.table")
        assert entries is not None
        looked_up = look_up(arithmetic, node, operation, values[0], entries.astype(np.int16))
        return Whole((arithmetic.cast(looked_up, name),))
    widened = [arithmetic.widen(value, name) for value in values]
    if isinstance(operation, IntegerAffine):
        return Whole((_write_line(arithmetic, node, widened[0]),))
    if isinstance(operation, IntegerProduct):
        function = operation.function
        walker = Walker(arithmetic.builder, function, survey(function), INPUT_NAME)
        return Whole((walker.run(widened),))
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
    first = arithmetic.read(f"{node.target}.first")
    assert first is not None
    zero = int(first) if x.zero_point is None else x.zero_point + int(first)
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


def _write_line(arithmetic: Arithmetic, node: Node, x: str) -> str:
    """Write a multiplication, and an addition, of numbers that broadcast."""
    for kind, which in (("Mul", "multiplier"), ("Add", "offset")):
        numbers = arithmetic.read(f"{node.target}.{which}")
        assert numbers is not None
        if bool((numbers == numbers.flat[0]).all()):
            numbers = numbers.flatten()[:1].reshape(())
        if numbers.size <= _LARGEST_WIDE:
            x = arithmetic.compute(kind, x, numbers, node.name)
        else:
            held = arithmetic.hold(numbers.astype(np.int32), f"{node.name}.{which}")
            x = arithmetic.builder.add(kind, [x, arithmetic.cast(held, node.name)], node.name)
    return x
