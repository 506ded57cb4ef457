"""Layers on integers: ConvInteger and MatMulInteger, whose sums are exact.

Both read bytes: uint8 inputs with their zero point, and weights w + 128 with the zero point 128,
which every version of ONNX Runtime computes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import Node
from torch.nn.functional import pad

from ompq.errors import OmpqError
from ompq.export.onnx.layouts import Arrangement, arrange_one
from ompq.export.onnx.whole import Arithmetic, Whole
from ompq.graph.layout import ImageLayout
from ompq.graph.operations import tensor_shape
from ompq.integer.dyadic import ACCUMULATOR_LIMIT
from ompq.integer.layers import QuantizedLayer

_LEAST, _LARGEST = -128, 127
_OFFSET = 128
Integers = NDArray[Any]


def write_layer(arithmetic: Arithmetic, node: Node, layer: QuantizedLayer, x: Whole) -> Whole:
    """Write a layer: its sums, bias included, in float64.

    Weights of nine bits (eight, less a zero point) are moved into a byte, channel by channel; what
    a channel was moved by, times the sum of its inputs, is added to its sums.

    Args:
        arithmetic: What writes into the graph, and holds the layer's integers.
        node: Call of the layer.
        layer: The layer.
        x: What it reads, as bytes.

    Raises:
        OmpqError: It reads or holds more bits than bytes have, or sums could exceed 32 bits.
    """
    path, name = str(node.target), node.name
    weight = arithmetic.read(f"{path}.weight")
    assert weight is not None
    if x.zero_point is None:
        raise OmpqError(f"{path} reads integers of more than 8 bits, which ONNX cannot multiply")
    moved = _find_moves(weight)
    centred = weight.astype(np.int64) - _align(moved, weight.ndim)
    _check_range(path, centred, layer.source.largest)
    padded = _pad(arithmetic, node, layer.layer, x)
    linear = isinstance(layer.layer, nn.Linear)
    sums = arithmetic.cast(_multiply(arithmetic, layer.layer, padded, centred, name), name)
    if moved.any():
        totals = _sum_inputs(arithmetic, layer.layer, padded, weight.shape, name)
        factor = moved if linear else _align(moved, 3)
        added = arithmetic.compute("Mul", totals, factor, name)
        sums = arithmetic.builder.add("Add", [sums, added], name)
    bias = arithmetic.read(f"{path}.bias")
    if bias is not None:
        sums = arithmetic.compute("Add", sums, bias if linear else _align(bias, 3), name)
    return Whole((sums,))


def _find_moves(weight: Integers) -> Integers:
    """Find by how much every channel's weights must be moved to fit into int8; 0 where they do."""
    rows = weight.reshape(len(weight), -1).astype(np.int64)
    low, high = rows.min(axis=1), rows.max(axis=1)
    middle = (low + high + 1) // 2
    return np.where((low < _LEAST) | (high > _LARGEST), middle, 0)


def _check_range(path: str, weight: Integers, reach: int) -> None:
    """Check that weights, moved, fit into bytes, and their sums into 32 bits."""
    if weight.min() < _LEAST or weight.max() > _LARGEST:
        raise OmpqError(f"the weights of {path} have more than 8 bits, which ONNX cannot multiply")
    if int(np.abs(weight).reshape(len(weight), -1).sum(axis=1).max()) * reach >= ACCUMULATOR_LIMIT:
        raise OmpqError(f"the sums of {path} could exceed 32 bits; give it fewer bits")


def _pad(arithmetic: Arithmetic, node: Node, layer: nn.Module, x: Whole) -> Whole:
    """Write the padding by copies of values that a convolution begins with; zeros are its own."""
    if isinstance(layer, nn.Linear) or layer.padding_mode == "zeros":
        return x
    source = node.all_input_nodes[0]
    shape = tensor_shape(source)
    assert shape is not None
    places = torch.arange(int(np.prod(shape))).view(shape)
    sides = layer._reversed_padding_repeated_twice
    # PyTorch copies floats alone.
    placed = pad(places.double(), sides, mode=layer.padding_mode).long().numpy()  # type: ignore[arg-type]
    layout = source.meta.get("layout") or ImageLayout()
    arrangement = Arrangement(placed, shape, layout, layout)
    padded = arrange_one(arithmetic.builder, x.name, arrangement, x.zero, node.name)
    return Whole((padded,), x.zero_point)


def _multiply(
    arithmetic: Arithmetic, layer: nn.Module, x: Whole, weight: Integers, name: str
) -> str:
    """Write the products of bytes and weights of eight bits, summed in int32."""
    offset = _OFFSET if weight.min() < 0 else 0
    stored = (weight + offset).astype(np.uint8)
    linear = isinstance(layer, nn.Linear)
    held = arithmetic.builder.constant(stored.T if linear else stored, f"{name}.weight")
    inputs = [x.name, held, *map(arithmetic.builder.constant, (x.zero, np.uint8(offset)))]
    if linear:
        return arithmetic.builder.add("MatMulInteger", inputs, name)
    return arithmetic.builder.add("ConvInteger", inputs, name, **read_geometry(layer))


def read_geometry(layer: nn.Module) -> dict[str, Any]:
    """Read a convolution's geometry as ONNX's operators have it.

    Args:
        layer: Convolution over height and width.

    Returns:
        The attributes of an operator; without zeros where other values are padded before it.

    >>> read_geometry(nn.Conv2d(1, 1, 2, padding="same"))["pads"]
    [0, 0, 1, 1]
    """
    assert isinstance(layer, nn.Conv2d)
    left, right, above, below = layer._reversed_padding_repeated_twice
    pads = [above, left, below, right] if layer.padding_mode == "zeros" else [0, 0, 0, 0]
    return {
        "kernel_shape": list(layer.kernel_size),
        "strides": list(layer.stride),
        "dilations": list(layer.dilation),
        "pads": pads,
        "group": layer.groups,
    }


def _sum_inputs(
    arithmetic: Arithmetic, layer: nn.Module, x: Whole, shape: tuple[int, ...], name: str
) -> str:
    """Write the sums of the inputs that every output channel sees, in float64."""
    groups = 1 if isinstance(layer, nn.Linear) else int(layer.groups)  # type: ignore[arg-type]
    ones = np.ones((groups, *shape[1:]), dtype=np.int64)
    totals = arithmetic.cast(_multiply(arithmetic, layer, x, ones, f"{name}.inputs"), name)
    if groups in (1, shape[0]):
        return totals
    # Every output channel of a group sees the same inputs.
    channels = np.repeat(np.arange(groups), shape[0] // groups)
    taken = arithmetic.builder.constant(channels)
    return arithmetic.builder.add("Gather", [totals, taken], name, axis=1)


def _align(values: Integers, dims: int) -> Integers:
    """Reshape one value per channel so that it broadcasts to `dims` dimensions, its own first."""
    return values.reshape(-1, *[1] * (dims - 1))
