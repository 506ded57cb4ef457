"""The choice of scale and zero point for a weight: from its range, or by search."""

from __future__ import annotations

import torch
from torch import Tensor

from ompq.quantizers.affine import QuantParams

_SMALLEST_SCALE = 1e-12


def min_max_scale(weight: Tensor, bits: int, *, symmetric: bool = False) -> QuantParams:
    """Per-channel parameters that cover each channel's range.

    Args:
        weight: channels × …, float.
        bits: width.
        symmetric: zero point in the middle, range from −2^(bits−1) to 2^(bits−1) − 1.
    """
    low, high = _ranges(weight, symmetric)
    return _params(low, high, bits, symmetric)


def lp_scale(
    weight: Tensor, bits: int, *, p: float = 2.4, steps: int = 80, symmetric: bool = False
) -> QuantParams:
    """Per-channel parameters with the least Σ|w − ŵ|^p among `steps` shrunken ranges.

    The range shrinks by a hundredth a step, as in BRECQ (arXiv:2102.05426, p = 2.4). All channels
    are searched at once.

    Args:
        weight: channels × …, float.
        bits: width.
        p: exponent of the error.
        steps: candidates, from the whole range downwards.
        symmetric: as in `min_max_scale`.
    """
    low, high = _ranges(weight, symmetric)
    best = _params(low, high, bits, symmetric)
    scale, zero_point = best.scale.clone(), best.zero_point.clone()
    flat = weight.flatten(1)
    least = torch.full_like(scale, torch.inf)
    for step in range(steps):
        shrink = 1.0 - 0.01 * step
        params = _params(low * shrink, high * shrink, bits, symmetric)
        error = (flat - _round_trip(flat, params)).abs_().pow_(p).sum(dim=1)
        better = error < least
        least = torch.where(better, error, least)
        scale = torch.where(better, params.scale, scale)
        zero_point = torch.where(better, params.zero_point, zero_point)
    return QuantParams(scale, zero_point, best.low, best.high)


def _ranges(weight: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Lowest and highest value per channel, zero included."""
    flat = weight.detach().flatten(1).float()
    low, high = flat.amin(dim=1).clamp_max(0), flat.amax(dim=1).clamp_min(0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    return low, high


def _params(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> QuantParams:
    if symmetric:
        half = 2 ** (bits - 1)
        scale = (high / (half - 1)).clamp_min(_SMALLEST_SCALE)
        return QuantParams(scale, torch.zeros_like(scale, dtype=torch.int32), -half, half - 1)
    levels = 2**bits - 1
    scale = ((high - low) / levels).clamp_min(_SMALLEST_SCALE)
    zero_point = torch.round(-low / scale).clamp(0, levels).int()
    return QuantParams(scale, zero_point, 0, levels)


def _round_trip(flat: Tensor, params: QuantParams) -> Tensor:
    return torch.fake_quantize_per_channel_affine(
        flat, params.scale, params.zero_point, 0, params.low, params.high
    )
