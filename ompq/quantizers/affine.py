"""Affine quantization: q = clamp(round(x / scale) + zero_point), x̂ = (q − zero_point) · scale.

Rounding is half to even, as in PyTorch's fused fake-quantize operators. Per channel means along
dimension 0, the output channel of a weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class QuantParams:
    """Scale and zero point of an affine quantizer, and the range of its integers.

    Attributes:
        scale: Positive float32, a scalar or one per channel.
        zero_point: int32, of the scale's shape.
        low: Smallest integer.
        high: Largest integer.

    Raises:
        ValueError: scale and zero point differ in shape, or the range is empty.
    """

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.scale.shape != self.zero_point.shape:
            raise ValueError("scale and zero_point need the same shape")
        if self.low >= self.high:
            raise ValueError(f"an empty range {self.low}..{self.high}")


def quantize(x: Tensor, params: QuantParams) -> Tensor:
    """Quantize floats to integers (int32) of their shape.

    >>> params = QuantParams(torch.tensor(0.5), torch.tensor(2, dtype=torch.int32), 0, 7)
    >>> quantize(torch.tensor([-9.0, 0.0, 0.25, 0.75]), params)  # half to even
    tensor([0, 2, 2, 4], dtype=torch.int32)
    """
    scale, zero_point = _align_with_channels(x, params)
    return torch.clamp(torch.round(x / scale) + zero_point, params.low, params.high).int()


def dequantize(q: Tensor, params: QuantParams) -> Tensor:
    """Dequantize integers to the floats (float32) that they stand for, of their shape.

    >>> params = QuantParams(torch.tensor(0.5), torch.tensor(2, dtype=torch.int32), 0, 7)
    >>> dequantize(torch.tensor([0, 2, 4]), params)
    tensor([-1.,  0.,  1.])
    """
    scale, zero_point = _align_with_channels(q, params)
    return (q - zero_point) * scale


def fake_quantize(x: Tensor, params: QuantParams) -> Tensor:
    """Fake-quantize floats: `dequantize(quantize(x))`, with a straight-through gradient.

    The gradient is 1 where the integer lies within the range, else 0.
    """
    if params.scale.dim() == 0:
        if x.device.type == "cpu":
            return _fake_quantize_on_cpu(x, params)
        return torch.fake_quantize_per_tensor_affine(
            x, params.scale, params.zero_point, params.low, params.high
        )
    return torch.fake_quantize_per_channel_affine(
        x, params.scale, params.zero_point, 0, params.low, params.high
    )


def round_to(x: Tensor, scale: Tensor) -> Tensor:
    """Round to multiples of a scale, with a gradient of 1 for `x`.

    Args:
        x: Floats of any shape.
        scale: Positive floats, of a shape that broadcasts to that of `x`.

    >>> round_to(torch.tensor([0.3, 0.7, -5.2]), torch.tensor(0.5))
    tensor([ 0.5000,  0.5000, -5.0000])
    """
    result: Tensor = _Rounding.apply(x, scale)
    return result


class _Rounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        return torch.mul(x, 1 / scale).round_().mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _fake_quantize_on_cpu(x: Tensor, params: QuantParams) -> Tensor:
    # The fused operator takes three times as long there as its four steps.
    zero_point = int(params.zero_point)
    result: Tensor = _ClampedRounding.apply(
        x, float(params.scale), params.low - zero_point, params.high - zero_point
    )
    return result


class _ClampedRounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, lowest: int, highest: int) -> Tensor:
        ctx.save_for_backward(x)
        # Whatever rounds to an integer of the range lies in it.
        ctx.range = (lowest - 0.5) * scale, (highest + 0.5) * scale
        return torch.mul(x, 1 / scale).round_().clamp_(lowest, highest).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, x, *ctx.range), None, None, None


def _align_with_channels(x: Tensor, params: QuantParams) -> tuple[Tensor, Tensor]:
    """Reshape scale and zero point so that they broadcast along the first dimension of `x`."""
    if params.scale.dim() == 0:
        return params.scale, params.zero_point
    if x.shape[0] != params.scale.shape[0]:
        raise ValueError(f"{x.shape[0]} channels but {params.scale.shape[0]} scales")
    shape = (-1,) + (1,) * (x.dim() - 1)
    return params.scale.view(shape), params.zero_point.view(shape)
