"""Largest values and exact sums over windows and dimensions, of bytes or of float64 integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.fx import GraphModule, Node

from ompq.export.onnx.builder import GraphBuilder
from ompq.graph.arguments import read_arguments, read_dims, read_pooling_window
from ompq.graph.operations import operation, tensor_shape

_LARGEST = frozenset("amax max".split())
# No integer in float64 is less.
_LEAST = -(2**62)


@dataclass(frozen=True)
class Window:
    """Window of a pooling, along one dimension.

    Attributes:
        kernel: Number of values.
        stride: Places from one window to the next.
        dilation: Places from one of a window's values to the next.
        pads: Places before and after that no value is taken from.
    """

    kernel: int
    stride: int
    dilation: int
    pads: tuple[int, int]


def is_choice(node: Node, module: GraphModule) -> bool:
    """Tell whether an operation chooses the largest or the least of values.

    Args:
        node: Node whose form is POOL or ARRANGE.
        module: Network that the node belongs to.
    """
    name = operation(node, module)
    return name in ("amax", "amin", "max", "min") or "max_pool" in name or "maxpool" in name


def write_choice(
    builder: GraphBuilder, node: Node, module: GraphModule, value: str, zero: np.generic
) -> str:
    """Write the choice of largest or least values, over windows or dimensions.

    Args:
        builder: Graph that operators are added to.
        node: Operation for which `is_choice` is true.
        module: Network that the node belongs to, with recorded shapes.
        value: Name of what it reads.
        zero: What stands for zero, of the value's type.
    """
    name, arguments = operation(node, module), read_arguments(node, module)
    if "pool" not in name:
        kind = "ReduceMax" if name in _LARGEST else "ReduceMin"
        axes = builder.constant(np.array(read_dims(node, module), dtype=np.int64))
        keeps = int(bool(arguments.get("keepdim", False)))
        return builder.add(kind, [value, axes], node.name, keepdims=keeps)
    before, after = tensor_shape(node.all_input_nodes[0]), tensor_shape(node)
    assert before is not None
    assert after is not None
    dims = 1 if "1d" in name else 2
    if name.startswith("adaptive"):
        sides = list(zip(before[-dims:], after[-dims:], strict=True))
        if any(size % count for size, count in sides):
            return write_uneven(builder, value, before, after, node.name)
        windows = [Window(size // count, size // count, 1, (0, 0)) for size, count in sides]
    else:
        windows = read_windows(arguments, before[-dims:], after[-dims:])
    alone = len(before) == dims + 1
    front = builder.constant(np.array([0], dtype=np.int64))
    # Without a dimension of images, or with images where channels are, PyTorch pools as well.
    value = builder.add("Unsqueeze", [value, front], node.name) if alone else value
    value = _write_pooling(builder, value, windows, zero, node.name)
    return builder.add("Squeeze", [value, front], node.name) if alone else value


def read_windows(
    arguments: dict[str, Any], before: tuple[int, ...], after: tuple[int, ...]
) -> list[Window]:
    """Read the windows of a pooling from its arguments, and from how many there are of them.

    Args:
        arguments: Arguments of the pooling, by torch's names.
        before: Sizes of the dimensions that it pools.
        after: Number of windows along each of them.
    """
    dims = len(before)
    kernels = _spread(arguments["kernel_size"], dims)
    strides = _spread(arguments.get("stride") or kernels, dims)
    dilations = _spread(arguments.get("dilation", 1), dims)
    paddings = _spread(arguments.get("padding", 0), dims)
    windows = []
    for dim in range(dims):
        reach = (after[dim] - 1) * strides[dim] + dilations[dim] * (kernels[dim] - 1) + 1
        # As far as the last window goes: further than the padding where it is cut off.
        pads = paddings[dim], max(reach - before[dim] - paddings[dim], 0)
        windows.append(Window(kernels[dim], strides[dim], dilations[dim], pads))
    return windows


def _write_pooling(
    builder: GraphBuilder, value: str, windows: list[Window], zero: np.generic, name: str
) -> str:
    pads = [window.pads[side] for side in (0, 1) for window in windows]
    if any(max(window.pads) >= window.kernel for window in windows):
        # Runtimes refuse to pad by a whole window.
        dims = len(windows)
        sides = np.array([0, 0, *pads[:dims], 0, 0, *pads[dims:]], dtype=np.int64)
        least = _LEAST if zero.dtype.kind == "f" else np.iinfo(zero.dtype).min
        filling = builder.constant(zero.dtype.type(least))
        value = builder.add("Pad", [value, builder.constant(sides), filling], name)
        pads = [0] * len(pads)
    return builder.add(
        "MaxPool",
        [value],
        name,
        kernel_shape=[window.kernel for window in windows],
        strides=[window.stride for window in windows],
        dilations=[window.dilation for window in windows],
        pads=pads,
    )


def write_uneven(
    builder: GraphBuilder, value: str, before: tuple[int, ...], after: tuple[int, ...], name: str
) -> str:
    """Write an adaptive pooling whose windows are of several sizes, one dimension by the other.

    Args:
        builder: Graph that operators are added to.
        value: Name of what it reads.
        before: Shape of what it reads.
        after: Shape of what it gives.
        name: Name that the operators should have.
    """
    for axis in (len(before) - 2, len(before) - 1):
        if before[axis] == after[axis]:
            continue
        pieces = []
        axes = builder.constant(np.array([axis], dtype=np.int64))
        for number in range(after[axis]):
            first = number * before[axis] // after[axis]
            last = -(-(number + 1) * before[axis] // after[axis])
            piece = write_slice(builder, value, (axis, first, last, 1), name)
            pieces.append(builder.add("ReduceMax", [piece, axes], name, keepdims=1))
        value = builder.add("Concat", pieces, name, axis=axis)
    return value


def write_sum(builder: GraphBuilder, node: Node, module: GraphModule, value: str) -> str:
    """Write what a sum or an average adds up, exactly.

    Args:
        builder: Graph that operators are added to.
        node: Operation that `count_summed` knows.
        module: Network that the node belongs to, with recorded shapes.
        value: Name of float64 integers.
    """
    if operation(node, module) in ("mean", "sum"):
        dims = read_dims(node, module)
        keeps = int(bool(read_arguments(node, module).get("keepdim", False)))
        return _reduce_sum(builder, value, dims or (), keeps, node.name)
    window, shape = read_pooling_window(node, module), tensor_shape(node)
    before = tensor_shape(node.all_input_nodes[0])
    assert window is not None
    assert shape is not None
    assert before is not None
    if window.kernel == before[2:] and shape[2:] == (1, 1) and window.padding == (0, 0):
        return _reduce_sum(builder, value, (2, 3), 1, node.name)
    if window.padding != (0, 0):
        sides = np.array([0, 0, *window.padding] * 2, dtype=np.int64)
        zero = builder.constant(np.float64(0))
        value = builder.add("Pad", [value, builder.constant(sides), zero], node.name)
    # Rows and columns one after the other: no operator sums windows of float64.
    for axis in (2, 3):
        kernel, stride = window.kernel[axis - 2], window.stride[axis - 2]
        span = stride * (shape[axis] - 1) + 1
        parts = [
            write_slice(builder, value, (axis, first, first + span, stride), node.name)
            for first in range(kernel)
        ]
        value = parts[0]
        for part in parts[1:]:
            value = builder.add("Add", [value, part], node.name)
    return value


def write_slice(
    builder: GraphBuilder, value: str, taken: tuple[int, int, int, int], name: str
) -> str:
    """Write a slice along one dimension.

    Args:
        builder: Graph that the operator is added to.
        value: Name of what is sliced.
        taken: Dimension; first place, the place behind the last one, and step.
        name: Name that the operator should have.
    """
    axis, first, last, step = (
        builder.constant(np.array([number], dtype=np.int64)) for number in taken
    )
    return builder.add("Slice", [value, first, last, axis, step], name)


def _reduce_sum(
    builder: GraphBuilder, value: str, dims: tuple[int, ...], keeps: int, name: str
) -> str:
    axes = builder.constant(np.array(dims, dtype=np.int64))
    return builder.add("ReduceSum", [value, axes], name, keepdims=keeps)


def _spread(value: Any, dims: int) -> list[int]:
    """Write one number, or one per dimension, as one per dimension."""
    numbers = list(value) if isinstance(value, tuple | list) else [value]
    return [int(number) for number in (numbers * dims if len(numbers) == 1 else numbers)]
