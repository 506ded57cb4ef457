"""Weights of the fast ONNX form: constants of 8 bits, or bits that the runtime unpacks at load.

Packed, an integer of b bits is cut into parts of 4, 2 and 1 bits (7 = 4 + 2 + 1), which fill bytes
evenly. Every part is one constant of bytes, the first value in the least significant bits. Shifts
and masks put them together; a runtime that folds constants does so once, when it loads the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ompq.export.onnx.builder import GraphBuilder
from ompq.integer.layers import QuantizedLayer

Bytes = NDArray[np.uint8]
StoredInteger = NDArray[np.int8] | NDArray[np.uint8] | np.int8 | np.uint8
# Values that are packed together: one byte of each bit of theirs.
_GROUP = 8
# How bytes and shifts of a part are arranged so that both together count to eight, by its width:
# parts of all widths then have one shape, and need no reshaping before they are joined.
_ARRANGEMENTS = {4: ((2, 2, 1), (2,)), 2: ((2, 1, 1), (2, 2)), 1: ((1, 1, 1), (2, 2, 2))}
# What offsets of their own cost a channel, and the operators that widen them a layer, in bits.
_OFFSET_BITS, _OFFSET_OPERATORS_BITS = 8, 1200
_INT8 = np.iinfo(np.int8)
# Two products of this and 255 add up to less than 2^15.
_LARGEST_SAFE = 64


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

    Args:
        builder: Graph to add to.
        name: Name of the layer.
        layer: Layer, in evaluation mode.
        packed: Whether the integers are packed.
    """
    whole = layer.compute_integers().weight.long().numpy()
    steps = layer.quantize_weight()[1].scale.detach().float().numpy()
    scale = builder.constant(steps, f"{name}.scale")
    zero_point = choose_zero_point(whole, per_channel=steps.ndim > 0)
    add = _add_packed if packed else _add_stored
    integers = add(builder, name, whole, zero_point)
    zeros = _add_zero_point(builder, name, zero_point, steps.shape, packed)
    along: dict[str, Any] = {"axis": 0} if steps.ndim else {}
    inputs = [integers, scale, zeros]
    return AddedWeight(builder.add("DequantizeLinear", inputs, f"{name}.weight", **along), scale)


def fits_int8(whole: NDArray[np.int64]) -> bool:
    """Tell whether integers, less their zero point, are int8: all but asymmetric ones of 8 bits."""
    return bool(whole.min() >= _INT8.min and whole.max() <= _INT8.max)


def choose_zero_point(whole: NDArray[np.int64], per_channel: bool = True) -> StoredInteger:
    """Choose the zero point that integers are stored with, and so their type.

    Small ones are int8 with zero point 0. Larger ones are uint8: x86 processors without VNNI add
    the products of uint8 and int8 in pairs of 16 bits, which 255 · 127 · 2 exceeds; ONNX Runtime
    computes wrong sums there without a word. One zero point, 128, serves all channels, since older
    runtimes refuse several; asymmetric integers of 8 bits need several all the same.

    Args:
        whole: Integers, their zero point subtracted, outputs × ….
        per_channel: Whether every output may have a zero point of its own.

    Returns:
        Zero point, int8 or uint8: a scalar, or one per output (outputs × 1 × …).

    >>> choose_zero_point(np.array([[3, -64]])), choose_zero_point(np.array([[3, -65]]))
    (np.int8(0), np.uint8(128))
    """
    if np.abs(whole).max() <= _LARGEST_SAFE:
        return np.int8(0)
    if fits_int8(whole):
        return np.uint8(-_INT8.min)
    # Zero lies within the span of every channel, so that its place is uint8 too.
    over = tuple(range(1, whole.ndim)) if per_channel else None
    least = whole.min(axis=over, keepdims=per_channel)
    return (-np.minimum(least, 0)).astype(np.uint8)


def _add_zero_point(
    builder: GraphBuilder,
    name: str,
    zero_point: StoredInteger,
    shape: tuple[int, ...],
    packed: bool,
) -> str:
    """Add a zero point of the shape of its scale; one for all takes no room in a packed file."""
    if zero_point.ndim or not packed or not shape:
        filled = np.broadcast_to(np.ravel(zero_point) if shape else zero_point, shape)
        return builder.constant(filled, f"{name}.zero")
    value = numpy_helper.from_array(np.reshape(zero_point, 1))
    size = builder.constant(np.array(shape))
    return builder.add("ConstantOfShape", [size], "zero", value=value)


def _add_stored(
    builder: GraphBuilder, name: str, whole: NDArray[np.int64], zero_point: StoredInteger
) -> str:
    """Add integers as they are."""
    stored = (whole + zero_point.astype(np.int64)).astype(zero_point.dtype)
    return builder.constant(stored, f"{name}.weight")


def _add_packed(
    builder: GraphBuilder, name: str, whole: NDArray[np.int64], zero_point: StoredInteger
) -> str:
    """Add integers packed; return the name of them, unpacked."""
    coded = code_weight(whole)
    if coded.bits == 8:
        return _add_stored(builder, name, whole, zero_point)
    codes = add_codes(builder, coded.codes, coded.bits, name)
    wide = builder.add("Cast", [codes], "bits", to=TensorProto.INT32)
    offset = coded.offset + zero_point.astype(np.int64)
    if offset.ndim:
        narrow = builder.constant(offset.astype(zero_point.dtype), f"{name}.offset")
        added = builder.add("Cast", [narrow], "bits", to=TensorProto.INT32)
    else:
        added = builder.constant(offset.astype(np.int32))
    wide = builder.add("Add", [wide, added], "bits")
    kind = helper.np_dtype_to_tensor_dtype(zero_point.dtype)
    return builder.add("Cast", [wide], "bits", to=kind)
