"""The choice of scale and zero point: from the range of the values, or by search.

In this file, candidates are several scales and zero points per row of values: `QuantParams` whose
scale and zero point are c × steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ompq.quantizers.affine import QuantParams
from ompq.quantizers.scale_bounds import RoundingErrors, contenders, sum_of_powers

_SMALLEST_SCALE = 1e-12
# Values that are searched at once: enough to outweigh the calls, few enough for the cache.
_PIECE = 2**20
# So many that another sample moves the scale by less than a step of the search.
_SAMPLED = 2**17


def min_max_scale(
    values: Tensor, bits: int, *, symmetric: bool = False, per_channel: bool = True
) -> QuantParams:
    """Choose scale and zero point that cover the range of the values and zero.

    Args:
        values: Floats, channels × ….
        bits: Width of the integers.
        symmetric: Whether the zero point is 0 in a range from −2^(bits−1) to 2^(bits−1) − 1; else
            the range is 0 to 2^bits − 1.
        per_channel: Whether each index of the first dimension has its own scale; else one scale
            serves all values.

    >>> params = min_max_scale(torch.tensor([[-1.0, 2.0], [0.0, 6.0]]), 2)
    >>> params.scale, params.zero_point
    (tensor([1., 2.]), tensor([1, 0], dtype=torch.int32))
    """
    rows = _flatten_to_rows(values, per_channel)
    return _shape_params(_make_params(*_find_ranges(rows, symmetric), bits, symmetric), per_channel)


def lp_scale(
    values: Tensor,
    bits: int,
    *,
    p: float = 2.4,
    steps: int = 80,
    symmetric: bool = False,
    per_channel: bool = True,
) -> QuantParams:
    """Choose scale and zero point with the least Σ|w − ŵ|^p, by search over shrunken ranges.

    Candidate k covers 1 − k/100 of the range, as in BRECQ (arXiv:2102.05426, p = 2.4); of equal
    candidates the widest is chosen. Only those that bounds cannot tell apart (see `contenders`) are
    evaluated; the result is that of evaluating them all.

    Args:
        values: Floats, channels × ….
        bits: Width of the integers.
        p: Exponent of the error, at least 2.
        steps: Number of candidates, from the whole range downwards.
        symmetric: Whether the zero point is 0 in a range from −2^(bits−1) to 2^(bits−1) − 1; else
            the range is 0 to 2^bits − 1.
        per_channel: Whether each index of the first dimension has its own scale; else one scale
            serves all values.

    Raises:
        ValueError: `p` is below 2.
    """
    if p < 2:
        raise ValueError(f"`p` is {p}; it must be at least 2")
    rows = _flatten_to_rows(values, per_channel)
    low, high = _find_ranges(rows, symmetric)
    shrink = 1.0 - 0.01 * torch.arange(steps, device=rows.device)
    candidates = _make_params(low[:, None] * shrink, high[:, None] * shrink, bits, symmetric)
    alive = contenders(rows, candidates, shrink, p)
    per_piece = max(1, _PIECE // rows.shape[1])
    pieces = [slice(start, start + per_piece) for start in range(0, len(rows), per_piece)]
    best = torch.cat(
        [_find_best(rows[piece], _select(candidates, piece), alive[piece], p) for piece in pieces]
    )
    chosen = torch.arange(len(rows), device=rows.device), best
    scale, zero_point = candidates.scale[chosen], candidates.zero_point[chosen]
    params = QuantParams(scale, zero_point, candidates.low, candidates.high)
    return _shape_params(params, per_channel)


def _find_best(rows: Tensor, candidates: QuantParams, alive: Tensor, p: float) -> Tensor:
    """Find the best candidate of each row (c × n) among those that are `alive` (c × steps)."""
    errors = torch.where(alive, 0.0, torch.inf)
    # A row with one candidate left has its best; its error need not be known.
    contested = alive & (alive.sum(dim=1, keepdim=True) > 1)
    errors_of = RoundingErrors(rows, candidates.low, candidates.high)
    for step in contested.any(dim=0).nonzero().flatten().tolist():
        (which,) = torch.where(contested[:, step])
        scale, zero_point = candidates.scale[which, step], candidates.zero_point[which, step]
        found = errors_of(rows[which], scale, zero_point.float())
        errors[which, step] = sum_of_powers(found, p) * scale**p
    # The first of equal errors is that of the widest range.
    return errors.argmin(dim=1)


def _flatten_to_rows(values: Tensor, per_channel: bool) -> Tensor:
    """Flatten values to channels × n, or to 1 × n, in float32."""
    floats = values.detach().float()
    return floats.flatten(1) if per_channel else floats.reshape(1, -1)


def _shape_params(params: QuantParams, per_channel: bool) -> QuantParams:
    """Keep one scale per row, or make the scalar of the only one."""
    if per_channel:
        return params
    return QuantParams(params.scale[0], params.zero_point[0], params.low, params.high)


def _find_ranges(rows: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Find the lowest and highest value of each row, zero included."""
    low, high = rows.amin(dim=1).clamp_max(0), rows.amax(dim=1).clamp_min(0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    return low, high


def _make_params(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> QuantParams:
    if symmetric:
        # By the positive side, which has one integer less than the negative.
        half = 2 ** (bits - 1)
        scale = (high / (half - 1)).clamp_min(_SMALLEST_SCALE)
        return QuantParams(scale, torch.zeros_like(scale, dtype=torch.int32), -half, half - 1)
    levels = 2**bits - 1
    scale = ((high - low) / levels).clamp_min(_SMALLEST_SCALE)
    zero_point = torch.round(-low / scale).clamp(0, levels).int()
    return QuantParams(scale, zero_point, 0, levels)


def _select(candidates: QuantParams, rows: slice) -> QuantParams:
    scale, zero_point = candidates.scale[rows], candidates.zero_point[rows]
    return QuantParams(scale, zero_point, candidates.low, candidates.high)


def sample_values(values: Tensor) -> Tensor:
    """Return all values, or 131072 of them drawn at random with a fixed seed; flat.

    Args:
        values: Values of any shape, dtype and device.
    """
    # A regular choice, every k-th, would see some columns of an image and never the others.
    flat = values.flatten()
    if flat.numel() <= _SAMPLED:
        return flat
    generator = torch.Generator().manual_seed(0)
    return flat[torch.randint(flat.numel(), (_SAMPLED,), generator=generator).to(flat.device)]


def sample_with_extremes(values: Tensor) -> Tensor:
    """Return all values, or a sample of them with the least and the largest; flat.

    Candidates for a scale are shares of the range, which a sample may miss.

    Args:
        values: Values of any shape, dtype and device.
    """
    sample = sample_values(values)
    if sample.numel() == values.numel():
        return sample
    return torch.cat([sample, values.amin()[None], values.amax()[None]])


def fit_activation_scale(values: Tensor, bits: int) -> QuantParams:
    """Choose the one scale and zero point of an activation by L_2.4 search on a sample of it.

    Args:
        values: Values of the activation, of any shape, at least one.
        bits: Width of the integers.
    """
    return lp_scale(sample_with_extremes(values), bits, per_channel=False)
