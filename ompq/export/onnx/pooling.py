"""Pooling over height and width, and resizing, as ONNX operators."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, floor, prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ompq.export.onnx.floats import to_pair
from ompq.export.onnx.operands import Call, Operand
from ompq.export.onnx.windows import Window, read_windows, write_uneven
from ompq.graph.arguments import read_dims, read_pooling_window

# No value in float32 is less.
_LEAST = float(np.finfo(np.float32).min)


def write_max_pool(call: Call) -> str:
    """Write a maximum over windows."""
    if call.get("return_indices", False) or not call.gives_tensor:
        raise call.refuse("it tells places too")
    windows, value = _read_windows(call), call.source.name
    if any(max(window.pads) >= window.kernel for window in windows):
        # Runtimes refuse to pad by a whole window.
        value = _pad(call, value, [window.pads for window in windows], _LEAST)
        windows = [replace(window, pads=(0, 0)) for window in windows]
    dilations = [window.dilation for window in windows]
    return call.add("MaxPool", value, dilations=dilations, **_describe(windows))


def write_average_pool(call: Call) -> str:
    """Write an average over windows."""
    windows, value = _read_windows(call), call.source.name
    divisor, counts_zeros = call.get("divisor_override", None), call.get("count_include_pad", True)
    paddings = to_pair(call.get("padding", 0))
    cut_off = any(w.pads[1] > given for w, given in zip(windows, paddings, strict=True))
    if cut_off and counts_zeros and not divisor:
        # Zeros of the padding are counted, what windows reach beyond it is not.
        if any(paddings):
            value = _pad(call, value, [(given, given) for given in paddings], 0.0)
        windows = [
            replace(w, pads=(0, w.pads[1] - given))
            for w, given in zip(windows, paddings, strict=True)
        ]
        counts_zeros = False
    counted = int(bool(divisor or counts_zeros))
    averages = call.add("AveragePool", value, count_include_pad=counted, **_describe(windows))
    if not divisor:
        return averages
    return call.add("Mul", averages, prod(w.kernel for w in windows) / float(divisor))


def _read_windows(call: Call) -> list[Window]:
    """Read windows with the padding that they reach into: a form without `ceil_mode`.

    Runtimes do not agree on which windows are left out in that mode.
    """
    windows = read_windows(call.arguments, call.source.shape[-2:], call.shape[-2:])
    return [replace(w, pads=(w.pads[0], max(w.pads))) for w in windows]


def _describe(windows: list[Window]) -> dict[str, list[int]]:
    return {
        "kernel_shape": [window.kernel for window in windows],
        "strides": [window.stride for window in windows],
        "pads": [window.pads[side] for side in (0, 1) for window in windows],
    }


def _pad(call: Call, value: str, pads: list[tuple[int, int]], filling: float) -> str:
    """Write a padding of height and width."""
    before = [0] * (call.source.rank - 2)
    sides = [size for side in (0, 1) for size in (*before, *(pair[side] for pair in pads))]
    return call.add("Pad", value, call.put_sizes(*sides), filling)


def write_mean(call: Call) -> str:
    """Write a mean over dimensions; over height and width, as the pooling that it is."""
    window = read_pooling_window(call.node, call.module)
    if window is None:
        dims = read_dims(call.node, call.module)
        if dims is None:
            raise call.refuse("its dimensions cannot be told")
        keep = int(bool(call.get("keepdim", False)))
        return call.add("ReduceMean", call.source, call.put_sizes(*dims), keepdims=keep)
    pooled = call.add("GlobalAveragePool", call.source)
    if len(call.shape) == 4:
        return pooled
    return call.add("Squeeze", pooled, call.put_sizes(2, 3))


def write_adaptive_average(call: Call) -> str:
    """Write an average over windows that divide height and width among a number of outputs."""
    window = read_pooling_window(call.node, call.module)
    if window is None:
        return _average_unevenly(call)
    if call.shape[-2:] == (1, 1):
        return call.add("GlobalAveragePool", call.source)
    kernel = list(window.kernel)
    return call.add("AveragePool", call.source, kernel_shape=kernel, strides=kernel)


def write_adaptive_maximum(call: Call) -> str:
    """Write a maximum over windows that divide height and width among a number of outputs."""
    if not call.gives_tensor:
        raise call.refuse("it tells places too")
    before, after = call.source.shape[-2:], call.shape[-2:]
    if after == (1, 1):
        return call.add("GlobalMaxPool", call.source)
    if before[0] % after[0] or before[1] % after[1]:
        name = call.source.name
        return write_uneven(call.builder, name, call.source.shape, call.shape, call.node.name)
    kernel = [before[0] // after[0], before[1] // after[1]]
    return call.add("MaxPool", call.source, kernel_shape=kernel, strides=kernel)


def _average_unevenly(call: Call) -> str:
    """Write averages over windows of several sizes, as products with two matrices."""
    (height, width), (rows, columns) = call.source.shape[-2:], call.shape[-2:]
    by_row = call.put(_build_averages(height, rows))
    by_column = call.put(_build_averages(width, columns).T)
    return call.add("MatMul", call.add("MatMul", by_row, call.source), by_column)


def _build_averages(size: int, outputs: int) -> NDArray[np.float32]:
    """Build the matrix (outputs × size) whose rows average PyTorch's adaptive windows.

    >>> _build_averages(3, 2)
    array([[0.5, 0.5, 0. ],
           [0. , 0.5, 0.5]], dtype=float32)
    """
    matrix = np.zeros((outputs, size), np.float32)
    for row in range(outputs):
        begin, end = floor(row * size / outputs), ceil((row + 1) * size / outputs)
        matrix[row, begin:end] = 1 / (end - begin)
    return matrix


def write_resizing(call: Call) -> str:
    """Write the resizing of images to the recorded size."""
    before, after = call.source.shape, call.shape
    mode, corners = str(call.get("mode", "nearest")), bool(call.get("align_corners", False))
    if mode not in ("nearest", "bilinear", "bicubic") or len(before) != 4:
        raise call.refuse(f"its mode is {mode}")
    factors = _read_factors(call)
    scales = [result / size for size, result in zip(before[2:], after[2:], strict=True)]
    # PyTorch samples at the scale that was given, not at the quotient of the sizes.
    is_even = factors is None or tuple(scales) == factors
    if mode == "nearest" and not is_even:
        raise call.refuse("its scale does not divide the size evenly")
    # Runtimes shrink by cubic polynomials in their own way, or not at all.
    shrinks = mode == "bicubic" and min(scales) < 1
    if not is_even or shrinks or call.get("antialias", False):
        return _resize_by_products(call, factors)
    return _add_resizing(call, call.source, mode, corners, scales)


def _read_factors(call: Call) -> tuple[float, float] | None:
    """Read the scales that PyTorch samples at; None where they follow from the sizes."""
    given = call.get("scale_factor", None)
    if given is None or call.get("recompute_scale_factor", False):
        return None
    factors = [given] * 2 if isinstance(given, int | float) else given
    return float(factors[0]), float(factors[1])


def _resize_by_products(call: Call, factors: tuple[float, float] | None) -> str:
    """Write a resizing as products with two matrices, which PyTorch tells.

    Rows are resized apart from columns, and every result is a weighted sum.
    """
    matrices = []
    for dim, (size, result) in enumerate(zip(call.source.shape[2:], call.shape[2:], strict=True)):
        resized = F.interpolate(
            torch.eye(size)[None, None],
            size=(result, size) if factors is None else None,
            scale_factor=None if factors is None else (factors[dim], 1.0),
            mode=str(call.get("mode", "nearest")),
            align_corners=call.get("align_corners", None),
            antialias=bool(call.get("antialias", False)),
        )
        matrices.append(resized[0, 0])
    by_row, by_column = call.put(matrices[0]), call.put(matrices[1].T)
    return call.add("MatMul", call.add("MatMul", by_row, call.source), by_column)


def _add_resizing(
    call: Call, source: Operand, mode: str, corners: bool, scales: list[float]
) -> str:
    factors = call.put(np.array([1, 1, *scales], np.float32))
    if mode == "nearest":
        return call.add(
            "Resize",
            source,
            None,
            factors,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
    return call.add(
        "Resize",
        source,
        None,
        factors,
        mode="linear" if mode == "bilinear" else "cubic",
        coordinate_transformation_mode="align_corners" if corners else "pytorch_half_pixel",
        cubic_coeff_a=-0.75,
    )
