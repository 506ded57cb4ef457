"""Pooling over height and width, and resizing, as ONNX operators."""

from __future__ import annotations

from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ompq.export.onnx.floats import to_pair
from ompq.export.onnx.operands import Call, Operand
from ompq.graph.arguments import read_dims, read_pooling_window


def write_max_pool(call: Call) -> str:
    """Write a maximum over windows."""
    if call.get("return_indices", False) or not call.gives_tensor:
        raise call.refuse("it tells places too")
    return call.add("MaxPool", call.source, **_read_window(call, dilated=True))


def write_average_pool(call: Call) -> str:
    """Write an average over windows."""
    window = _read_window(call, dilated=False)
    counts_zeros = int(bool(call.get("count_include_pad", True)))
    divisor = call.get("divisor_override", None)
    averages = call.add(
        "AveragePool", call.source, count_include_pad=1 if divisor else counts_zeros, **window
    )
    if not divisor:
        return averages
    if window["ceil_mode"]:
        raise call.refuse("it has both `divisor_override` and `ceil_mode`")
    count = window["kernel_shape"][0] * window["kernel_shape"][1]
    return call.add("Mul", averages, count / float(divisor))


def _read_window(call: Call, dilated: bool) -> dict[str, Any]:
    kernel = to_pair(call.get("kernel_size", None))
    down, across = to_pair(call.get("padding", 0))
    window = {
        "kernel_shape": list(kernel),
        "strides": list(to_pair(call.get("stride", None) or kernel)),
        "pads": [down, across, down, across],
        "ceil_mode": int(bool(call.get("ceil_mode", False))),
    }
    if dilated:
        window["dilations"] = list(to_pair(call.get("dilation", 1)))
    return window


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
    before, after = call.source.shape[-2:], call.shape[-2:]
    if after == (1, 1):
        return call.add("GlobalMaxPool", call.source)
    if before[0] % after[0] or before[1] % after[1]:
        raise call.refuse("its windows are of several sizes")
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
    known = mode in ("nearest", "bilinear", "bicubic") and len(before) == 4
    if not known or call.get("antialias", False):
        raise call.refuse(f"its mode is {mode}")
    scale = call.get("scale_factor", None)
    if scale is not None and not call.get("recompute_scale_factor", False):
        pairs = zip(before[2:], after[2:], _to_floats(scale), strict=True)
        # PyTorch samples at the scale that was given, not at the quotient of the sizes.
        if any(size * factor != result for size, result, factor in pairs):
            raise call.refuse("its scale does not divide the size evenly")
    scales = [result / size for size, result in zip(before[2:], after[2:], strict=True)]
    return _add_resizing(call, call.source, mode, corners, scales)


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


def _to_floats(scale: float | tuple[float, ...] | list[float]) -> list[float]:
    return [float(scale)] * 2 if isinstance(scale, int | float) else [float(s) for s in scale]
