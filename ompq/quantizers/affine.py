"""Affine quantization: q = clamp(round(x / scale) + zero_point), x̂ = (q − zero_point) · scale.

Arithmetic is that of PyTorch's fused fake-quantize operators (round half to even). Per channel
means along dimension 0, the output channel of a weight.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """`dequantize(quantize(x))` by the fused operator, with a straight-through gradient."""
    if params.scale.dim() == 0:
        return torch.fake_quantize_per_tensor_affine(
            x, params.scale, params.zero_point, params.low, params.high
        )
    return torch.fake_quantize_per_channel_affine(
        x, params.scale, params.zero_point, 0, params.low, params.high
    )


def _along_channels(x: Tensor, params: QuantParams) -> tuple[Tensor, Tensor]:
    if params.scale.dim() == 0:
        return params.scale, params.zero_point
    if x.shape[0] != params.scale.shape[0]:
        raise ValueError(f"{x.shape[0]} channels but {params.scale.shape[0]} scales")
    shape = (-1,) + (1,) * (x.dim() - 1)
    return params.scale.view(shape), params.zero_point.view(shape)
