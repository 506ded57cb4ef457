"""What ONNX Runtime's int8 kernels compute of a file that quantizes and dequantizes, in NumPy.

Sums of products are exact integers. What becomes of them is float32: one factor per channel, one
rounding to nearest, half to even. A sum of two values is two fused multiply-adds: of the second
one with what the zero points make up, of the first one with that. An average is one factor times a
sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch.nn.functional import conv2d, max_pool2d, pad

Array = NDArray[Any]
FLOAT = np.float32


@dataclass(frozen=True)
class Levels:
    """Integers as they are stored, the one that stands for zero, and the step between two."""

    stored: Array
    zero: Array
    step: Array

    @property
    def whole(self) -> Array:
        return self.stored.astype(np.int64) - self.zero

    def to_float(self) -> Array:
        return self.whole.astype(FLOAT) * self.step


@dataclass(frozen=True)
class Sums:
    """Sums of integers, the step of each, and whether a ReLU follows.

    An average is a sum of pixels, whose number its step is divided by.
    """

    whole: Array
    step: Array
    pixels: int = 1
    clipped: bool = False

    def to_float(self) -> Array:
        return self.whole.astype(FLOAT) * self.step


@dataclass(frozen=True)
class Pair:
    """Two values that one kernel adds, and whether a ReLU follows."""

    first: Levels
    second: Levels
    clipped: bool = False

    def add(self, scale: Array, place: int) -> Array:
        """Add to multiples of a scale, from the integer `place` on that stands for zero."""
        first, second = np.float64(self.first.step / scale), np.float64(self.second.step / scale)
        # Every line is rounded to float32 once, as fused multiply-adds are.
        zeros = FLOAT(second * self.second.zero)
        zeros = FLOAT(first * self.first.zero + np.float64(zeros))
        fixed = FLOAT(place) - zeros
        part = (second * self.second.stored + fixed).astype(FLOAT)
        total: Array = (first * self.first.stored + part).astype(FLOAT)
        return total


def emulate(model: onnx.ModelProto, images: Array) -> Array:
    """Compute the logits of images as ONNX Runtime's fused network does.

    Args:
        model: Plain model of `build_quantized_model`.
        images: Images, float32, n × channels × height × width.
    """
    values: dict[str, Any] = {"": None, "images": images}
    values |= {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        inputs = [values[name] for name in node.input]
        values[node.output[0]] = OPERATORS[node.op_type](*inputs, **attributes)
    return to_float(values["logits"])


def to_float(value: Any) -> Array:
    return value if isinstance(value, np.ndarray) else value.to_float()


def quantize(value: Any, scale: Array, zero: Array) -> Array:
    """Quantize, as the kernel does that has fused this with what comes before."""
    place, limits = int(zero), np.iinfo(zero.dtype)
    if isinstance(value, Pair):
        levels = np.rint(value.add(scale, place))
    elif isinstance(value, Sums):
        divisor = scale if value.pixels == 1 else scale * FLOAT(value.pixels)
        levels = np.rint(value.whole.astype(FLOAT) * (value.step / divisor)) + place
    else:
        levels = np.rint(to_float(value) / scale) + place
    lowest = place if getattr(value, "clipped", False) else limits.min
    return np.clip(levels, lowest, limits.max).astype(zero.dtype)


def dequantize(stored: Array, scale: Array, zero: Array | None = None, axis: int = 1) -> Levels:
    zero = np.zeros_like(stored, shape=scale.shape) if zero is None else zero
    if scale.ndim:
        shape = [-1 if dim == axis else 1 for dim in range(stored.ndim)]
        zero, scale = zero.reshape(shape), scale.reshape(shape)
    return Levels(stored, zero.astype(np.int64), scale)


def convolve(x: Levels, weight: Levels, bias: Levels | None = None, **how: Any) -> Sums:
    """Convolve integers; float64 holds their sums exactly."""
    above, left, below, right = how["pads"]
    padded = pad(torch.from_numpy(x.whole.astype(np.float64)), (left, right, above, below))
    kernel = torch.from_numpy(weight.whole.astype(np.float64))
    sums = conv2d(padded, kernel, None, how["strides"], 0, how["dilations"], how["group"])
    whole = sums.numpy().astype(np.int64)
    whole = whole if bias is None else whole + bias.whole.reshape(-1, 1, 1)
    return Sums(whole, (x.step * weight.step).reshape(-1, 1, 1))


def multiply(x: Levels, weight: Levels, bias: Levels | None = None, **how: Any) -> Sums:
    whole = x.whole @ weight.whole.T
    whole = whole if bias is None else whole + bias.whole
    return Sums(whole, np.broadcast_to((x.step * weight.step).ravel(), whole.shape))


def clip_below_zero(value: Any) -> Any:
    if isinstance(value, Sums | Pair):
        return replace(value, clipped=True)
    return np.maximum(to_float(value), 0)


def pool(value: Any, kernel_shape: list[int], strides: list[int], pads: list[int], **_: Any) -> Any:
    """Take the largest of each window; rounding keeps the order, whichever comes first."""

    def run(x: Array) -> Array:
        return max_pool2d(torch.from_numpy(x), kernel_shape, strides, pads[:2]).numpy()

    return change(value, lambda x: run(x.astype(np.float64)).astype(x.dtype))


def average(value: Levels) -> Sums:
    height, width = value.stored.shape[2:]
    return Sums(value.whole.sum(axis=(2, 3), keepdims=True), value.step, height * width)


def change(value: Any, function: Callable[[Array], Array]) -> Any:
    """Arrange the integers of a value."""
    if isinstance(value, Levels):
        return replace(value, stored=function(value.stored))
    if isinstance(value, Sums):
        return replace(value, whole=function(value.whole))
    return function(value)


def concatenate(*parts: Any, axis: int) -> Array:
    return np.concatenate([to_float(part) for part in parts], axis)


OPERATORS: dict[str, Callable[..., Any]] = {
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    "Conv": convolve,
    "Gemm": multiply,
    "Add": Pair,
    "Concat": concatenate,
    "Relu": clip_below_zero,
    "Clip": lambda x, low=None, high=None: np.clip(x, low, high),
    "MaxPool": pool,
    "GlobalAveragePool": average,
    "Squeeze": lambda value, axes: change(value, partial(np.squeeze, axis=tuple(axes))),
    "Reshape": lambda value, shape: change(value, partial(np.reshape, shape=tuple(shape))),
    "Identity": lambda value: value,
}
