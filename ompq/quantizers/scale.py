"""The choice of scale and zero point: from the range of the values, or by search."""

from __future__ import annotations

import torch
from torch import Tensor

from ompq.quantizers.affine import QuantParams
from ompq.quantizers.contenders import RoundingErrors, contenders, sum_of_powers

_SMALLEST_SCALE = 1e-12
# Values that are searched at once: enough to outweigh the calls, few enough for the cache.
_PIECE = 2**20


def min_max_scale(
    values: Tensor, bits: int, *, symmetric: bool = False, per_channel: bool = True
) -> QuantParams:
    """Parameters that cover the range of the values.

    Args:
        values: channels × …, float.
        bits: width.
        symmetric: zero point in the middle, range from −2^(bits−1) to 2^(bits−1) − 1.
        per_channel: one scale per index of the first dimension; else one for all values.
    """
    flat = _rows(values, per_channel)
    return _shaped(_params(*_ranges(flat, symmetric), bits, symmetric), per_channel)


def lp_scale(
    values: Tensor,
    bits: int,
    *,
    p: float = 2.4,
    steps: int = 80,
    symmetric: bool = False,
    per_channel: bool = True,
) -> QuantParams:
    """Parameters with the least Σ|w − ŵ|^p among `steps` shrunken ranges; the widest of equals.

    The range shrinks by a hundredth a step, as in BRECQ (arXiv:2102.05426, p = 2.4). Only the
    candidates that bounds cannot tell apart (see `contenders`) are evaluated; the result is that of
    evaluating them all.

    Args:
        values: channels × …, float.
        bits: width.
        p: exponent of the error, at least 2.
        steps: candidates, from the whole range downwards.
        symmetric: as in `min_max_scale`.
        per_channel: as in `min_max_scale`.
    """
    if p < 2:
        raise ValueError(f"p must be at least 2, not {p}")
    flat = _rows(values, per_channel)
    low, high = _ranges(flat, symmetric)
    shrink = 1.0 - 0.01 * torch.arange(steps, device=flat.device)
    grids = _params(low[:, None] * shrink, high[:, None] * shrink, bits, symmetric)
    alive = contenders(flat, grids, shrink, p)
    per_piece = max(1, _PIECE // flat.shape[1])
    pieces = [slice(start, start + per_piece) for start in range(0, len(flat), per_piece)]
    best = torch.cat([_best(flat[part], _select(grids, part), alive[part], p) for part in pieces])
    chosen = torch.arange(len(flat), device=flat.device), best
    params = QuantParams(grids.scale[chosen], grids.zero_point[chosen], grids.low, grids.high)
    return _shaped(params, per_channel)


def _best(rows: Tensor, grids: QuantParams, alive: Tensor, p: float) -> Tensor:
    """Per row (c × n), the index of the best of its candidates that are `alive` (c × steps)."""
    errors = torch.where(alive, 0.0, torch.inf)
    contested = alive & (alive.sum(dim=1, keepdim=True) > 1)
    errors_of = RoundingErrors(rows, grids.low, grids.high)
    for step in contested.any(dim=0).nonzero().flatten().tolist():
        (which,) = torch.where(contested[:, step])
        scale, zero_point = grids.scale[which, step], grids.zero_point[which, step]
        found = errors_of(rows[which], scale, zero_point.float())
        errors[which, step] = sum_of_powers(found, p) * scale**p
    return errors.argmin(dim=1)


def _rows(values: Tensor, per_channel: bool) -> Tensor:
    """channels × n, or 1 × n."""
    plain = values.detach().float()
    return plain.flatten(1) if per_channel else plain.reshape(1, -1)


def _shaped(params: QuantParams, per_channel: bool) -> QuantParams:
    """One scale per row, or the scalar of the only one."""
    if per_channel:
        return params
    return QuantParams(params.scale[0], params.zero_point[0], params.low, params.high)


def _ranges(rows: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Lowest and highest value per row, zero included."""
    low, high = rows.amin(dim=1).clamp_max(0), rows.amax(dim=1).clamp_min(0)
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


def _select(grids: QuantParams, rows: slice) -> QuantParams:
    return QuantParams(grids.scale[rows], grids.zero_point[rows], grids.low, grids.high)
