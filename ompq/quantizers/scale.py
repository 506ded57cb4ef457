"""The choice of scale and zero point: from the range of the values, or by search."""

from __future__ import annotations

import torch
from torch import Tensor

from ompq.quantizers.affine import QuantParams

_SMALLEST_SCALE = 1e-12
# Values that are searched at once: enough to outweigh the calls, few enough for the cache.
_PIECE = 2**20
# Bounds and errors are rounded sums; a bound this much above the least error may still win.
_CAUTION = 1 - 1e-4


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

    The range shrinks by a hundredth a step, as in BRECQ (arXiv:2102.05426, p = 2.4). Powers are
    slow and squares are fast: by Hölder's inequality Σ|e|^p ≥ n (Σe²/n)^(p/2) for p ≥ 2, so that
    most candidates are ruled out by their squared error alone. The result is that of evaluating
    them all.

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
    per_piece = max(1, _PIECE // flat.shape[1])
    pieces = [slice(start, start + per_piece) for start in range(0, len(flat), per_piece)]
    best = torch.cat([_search(flat[piece], _select(grids, piece), p) for piece in pieces])
    chosen = torch.arange(len(flat), device=flat.device), best
    params = QuantParams(grids.scale[chosen], grids.zero_point[chosen], grids.low, grids.high)
    return _shaped(params, per_channel)


def _search(rows: Tensor, grids: QuantParams, p: float) -> Tensor:
    """Per row (c × n), the index of the best of its candidates (`grids`: c × steps)."""
    count, steps = rows.shape[1], grids.scale.shape[1]
    low, high = float(grids.low), float(grids.high)
    inverse, zero_point = 1 / grids.scale, grids.zero_point.float()
    position, rounded = torch.empty_like(rows), torch.empty_like(rows)

    def errors(values: Tensor, inverse: Tensor, zero_point: Tensor) -> Tensor:
        """Rounding errors in units of the scales, in the first rows of `rounded`."""
        where, error = position[: len(values)], rounded[: len(values)]
        torch.mul(values, inverse, out=where).add_(zero_point)
        return torch.round(where, out=error).clamp_(low, high).sub_(where)

    def powers(error: Tensor) -> Tensor:
        """Σ|e|^p by way of logarithms, which are faster than powers."""
        return error.abs_().log2_().mul_(p).exp2_().sum(dim=1)

    columns = list(zip(_columns(inverse), _columns(zero_point), strict=True))
    squares = [errors(rows, *column).square_().sum(dim=1) for column in columns]
    unit = grids.scale**p
    bound = count * (torch.stack(squares, dim=1) / count) ** (p / 2) * unit
    everywhere = torch.arange(len(rows), device=rows.device)
    first = bound.argmin(dim=1)
    chosen = everywhere, first
    least = powers(errors(rows, inverse[chosen][:, None], zero_point[chosen][:, None]))
    least *= unit[chosen]
    exact = torch.full_like(bound, torch.inf)
    for step in range(steps):
        (alive,) = torch.where(bound[:, step] * _CAUTION <= least)
        if len(alive):
            scale_of, zero_of = columns[step]
            error = powers(errors(rows[alive], scale_of[alive], zero_of[alive]))
            exact[alive, step] = error * unit[alive, step]
            least[alive] = torch.minimum(least[alive], exact[alive, step])
    return exact.argmin(dim=1)


def _columns(values: Tensor) -> tuple[Tensor, ...]:
    """c × steps → per step a c × 1."""
    return values.t().contiguous().unsqueeze(2).unbind(0)


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
