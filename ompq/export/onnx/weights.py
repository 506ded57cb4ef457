"""Weights of the fast ONNX form: int8 constants, or bits that the runtime unpacks at load.

Packed, an integer of b bits is cut into parts of 4, 2 and 1 bits (7 = 4 + 2 + 1), which fill bytes
evenly. Every part is one constant of bytes, the first value in the least significant bits. Shifts
and masks put them together; a runtime that folds constants does so once, when it loads the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from ompq.export.onnx.builder import GraphBuilder
from ompq.integer.layers import QuantizedLayer

Bytes = NDArray[np.uint8]
# Values that are packed together: one byte of each bit of theirs.
_GROUP = 8
# How bytes and shifts of a part are arranged so that both together count to eight, by its width:
# parts of all widths then have one shape, and need no reshaping before they are joined.
_ARRANGEMENTS = {4: ((2, 2, 1), (2,)), 2: ((2, 1, 1), (2, 2)), 1: ((1, 1, 1), (2, 2, 2))}
# What offsets of their own cost a channel, and the operators that widen them a layer, in bits.
_OFFSET_BITS, _OFFSET_OPERATORS_BITS = 8, 1200
_INT8 = np.iinfo(np.int8)


@dataclass(frozen=True)
class CodedWeight:
    """Integers of a weight as codes from 0 on.

    Attributes:
        codes: Codes, uint8, of the weight's shape: the integers less `offset`.
        offset: What code 0 stands for, int64: a scalar, or one per channel (of a shape that
            broadcasts to the weight's).
        bits: Width of the codes.
    """

    codes: Bytes
    offset: NDArray[np.int64]
    bits: int


@dataclass(frozen=True)
class AddedWeight:
    """A weight in an ONNX graph.

    Attributes:
        value: Name of the dequantized weight, float32, outputs × ….
        scale: Name of its scale, float32: a scalar, or one per output.
    """

    value: str
    scale: str


def code_weight(whole: NDArray[np.int64]) -> CodedWeight:
    """Choose codes for the integers of a weight, of as few bits as hold them.

    Args:
        whole: Integers, their zero point subtracted, outputs × …; each output's span ≤ 255.

    >>> code_weight(np.array([[-3, 0], [2, 4]])).bits
    3
    """
    rows = whole.reshape(len(whole), -1)
    common = rows.min()
    separate = rows.min(axis=1, keepdims=True)
    bits_in_common, bits = _count_bits(rows - common), _count_bits(rows - separate)
    saved = (bits_in_common - bits) * rows.size
    if bits_in_common <= 8 and saved <= _OFFSET_BITS * len(rows) + _OFFSET_OPERATORS_BITS:
        return CodedWeight((whole - common).astype(np.uint8), np.asarray(common), bits_in_common)
    offset = separate.reshape(-1, *[1] * (whole.ndim - 1))
    return CodedWeight((whole - offset).astype(np.uint8), offset, bits)


def _count_bits(codes: NDArray[np.int64]) -> int:
    return max(1, int(codes.max()).bit_length())


def split_width(bits: int) -> tuple[int, ...]:
    """Split a width into the widths of its parts, the largest, of the lowest bits, first.

    >>> [split_width(bits) for bits in (2, 3, 6, 7)]
    [(2,), (2, 1), (4, 2), (4, 2, 1)]
    """
    return tuple(width for width in _ARRANGEMENTS if bits & width)


def pack_part(values: Bytes, width: int) -> Bytes:
    """Pack values of 1, 2 or 4 bits, eight of them into `width` bytes, the first one lowest.

    Args:
        values: Values below 2^width, of any shape; zeros fill the last group.
        width: Bits of a value.

    Returns:
        Bytes, ⌈n / 8⌉ · width.

    >>> pack_part(np.array([1, 2, 3, 0, 1], dtype=np.uint8), 2).tolist()
    [57, 1]
    """
    padded = np.zeros(-(-values.size // _GROUP) * _GROUP, np.uint8)
    padded[: values.size] = values.ravel()
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    packed: Bytes = np.bitwise_or.reduce(padded.reshape(-1, 8 // width) << shifts, axis=1)
    return packed


def add_codes(builder: GraphBuilder, codes: Bytes, bits: int, name: str) -> str:
    """Add the codes of a weight to a graph, packed.

    Args:
        builder: Graph to add to.
        codes: Codes below 2^bits, any shape.
        bits: Width of the codes, 1 to 8; 8 bits are bytes as they are.
        name: Name of the layer.

    Returns:
        Name of the codes, uint8, of their shape.
    """
    if bits == 8:
        return builder.constant(codes, f"{name}.weight")
    joined, first_bit = "", 0
    for width in split_width(bits):
        part = (codes >> np.uint8(first_bit)) & np.uint8(2**width - 1)
        value = _add_part(builder, pack_part(part, width), width, first_bit, name)
        joined = builder.add("BitwiseOr", [joined, value], "bits") if joined else value
        first_bit += width
    if codes.size % _GROUP:
        flat = builder.add("Reshape", [joined, builder.constant(np.array([-1]))], "bits")
        begin, end = (builder.constant(np.array([place])) for place in (0, codes.size))
        joined = builder.add("Slice", [flat, begin, end], "bits")
    return builder.add("Reshape", [joined, builder.constant(np.array(codes.shape))], "bits")


def _add_part(builder: GraphBuilder, packed: Bytes, width: int, first_bit: int, name: str) -> str:
    """Add one part of all codes, ⌈n / 8⌉ × 2 × 2 × 2, shifted to where it belongs."""
    of_bytes, of_shifts = _ARRANGEMENTS[width]
    constant = builder.constant(packed.reshape(-1, *of_bytes), f"{name}.bits{width}")
    shifts = np.arange(0, 8, width, dtype=np.uint8).reshape(of_shifts)
    value = builder.add("BitShift", [constant, builder.constant(shifts)], "bits", direction="RIGHT")
    value = builder.add("BitwiseAnd", [value, builder.constant(np.uint8(2**width - 1))], "bits")
    if not first_bit:
        return value
    place = builder.constant(np.uint8(first_bit))
    return builder.add("BitShift", [value, place], "bits", direction="LEFT")


def add_weight(
    builder: GraphBuilder, name: str, layer: QuantizedLayer, packed: bool
) -> AddedWeight:
    """Add the weight of a layer to a graph: integers that are dequantized there.

    Integers less their zero point are int8 with zero point 0, which every runtime computes with.
    Only asymmetric ones of 8 bits exceed int8: those are uint8 with zero points.

    Args:
        builder: Graph to add to.
        name: Name of the layer.
        layer: Layer, in evaluation mode.
        packed: Whether the integers are packed.
    """
    whole = layer.compute_integers().weight.numpy()
    steps = layer.quantize_weight()[1].scale.detach().float().numpy()
    scale = builder.constant(steps, f"{name}.scale")
    if not fits_int8(whole):
        inputs = _add_uint8(builder, name, whole, steps.shape)
    elif packed:
        inputs = [_add_packed(builder, name, whole)]
    else:
        inputs = [builder.constant(whole.astype(np.int8), f"{name}.weight")]
    along: dict[str, Any] = {"axis": 0} if steps.ndim else {}
    inputs.insert(1, scale)
    return AddedWeight(builder.add("DequantizeLinear", inputs, f"{name}.weight", **along), scale)


def fits_int8(whole: NDArray[np.int64]) -> bool:
    """Tell whether integers, less their zero point, are int8: all but asymmetric ones of 8 bits."""
    return bool(whole.min() >= _INT8.min and whole.max() <= _INT8.max)


def _add_uint8(
    builder: GraphBuilder, name: str, whole: NDArray[np.int64], shape: tuple[int, ...]
) -> list[str]:
    """Add asymmetric integers of 8 bits; return the names of them and of their zero points.

    Args:
        builder: Graph to add to.
        name: Name of the layer.
        whole: Integers, their zero point subtracted, outputs × ….
        shape: Shape of the scale, and so of the zero points.
    """
    rows = whole.reshape(len(whole), -1) if shape else whole.reshape(1, -1)
    # Zero lies within the span, so that the zero point is uint8 too.
    offset = np.minimum(rows.min(axis=1, keepdims=True), 0)
    codes = (rows - offset).reshape(whole.shape).astype(np.uint8)
    zero_point = builder.constant((-offset).reshape(shape).astype(np.uint8), f"{name}.zero")
    return [builder.constant(codes, f"{name}.weight"), zero_point]


def _add_packed(builder: GraphBuilder, name: str, whole: NDArray[np.int64]) -> str:
    """Add integers that fit int8, packed; return the name of them, unpacked."""
    coded = code_weight(whole)
    if coded.bits == 8:
        return builder.constant(whole.astype(np.int8), f"{name}.weight")
    codes = add_codes(builder, coded.codes, coded.bits, name)
    wide = builder.add("Cast", [codes], "bits", to=TensorProto.INT32)
    if coded.offset.ndim:
        offset = builder.constant(coded.offset.astype(np.int8), f"{name}.offset")
        offset = builder.add("Cast", [offset], "bits", to=TensorProto.INT32)
    else:
        offset = builder.constant(coded.offset.astype(np.int32))
    wide = builder.add("Add", [wide, offset], "bits")
    return builder.add("Cast", [wide], "bits", to=TensorProto.INT8)
