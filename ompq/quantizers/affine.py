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
    """Scale (positive float32) and zero point (int32), scalars or one per channel; and the range.

    Integers run from `low` to `high`, both included.
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
    """Integers (int32) of `x`, the same shape."""
    scale, zero_point = _along_channels(x, params)
    return torch.clamp(torch.round(x / scale) + zero_point, params.low, params.high).int()


def dequantize(q: Tensor, params: QuantParams) -> Tensor:
    """Floats that the integers stand for, the same shape."""
    scale, zero_point = _along_channels(q, params)
    return (q - zero_point) * scale


def fake_quantize(x: Tensor, params: QuantParams) -> Tensor:
    """`dequantize(quantize(x))`, with a gradient that passes straight through within the range."""
    if params.scale.dim() == 0:
        if x.device.type == "cpu":
            return _on_cpu(x, params)
        return torch.fake_quantize_per_tensor_affine(
            x, params.scale, params.zero_point, params.low, params.high
        )
    return torch.fake_quantize_per_channel_affine(
        x, params.scale, params.zero_point, 0, params.low, params.high
    )


def round_to(x: Tensor, scale: Tensor) -> Tensor:
    """`x` rounded to multiples of `scale` (which broadcasts to it), gradients as if it were not."""
    result: Tensor = _Rounding.apply(x, scale)
    return result


class _Rounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        return torch.mul(x, 1 / scale).round_().mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _on_cpu(x: Tensor, params: QuantParams) -> Tensor:
    """There the fused operator takes three times as long as its four steps."""
    zero_point = int(params.zero_point)
    result: Tensor = _Clamped.apply(
        x, float(params.scale), params.low - zero_point, params.high - zero_point
    )
    return result


class _Clamped(torch.autograd.Function):
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


def _along_channels(x: Tensor, params: QuantParams) -> tuple[Tensor, Tensor]:
    if params.scale.dim() == 0:
        return params.scale, params.zero_point
    if x.shape[0] != params.scale.shape[0]:
        raise ValueError(f"{x.shape[0]} channels but {params.scale.shape[0]} scales")
    shape = (-1,) + (1,) * (x.dim() - 1)
    return params.scale.view(shape), params.zero_point.view(shape)
