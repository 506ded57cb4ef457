"""Scale search against the loop over channels and candidates that it stands for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ompq.quantizers import ActivationQuantizer, QuantParams, fake_quantize, lp_scale, min_max_scale
from ompq.quantizers.scale_bounds import contenders


def literal_candidates(
    channel: Tensor, bits: int, symmetric: bool, p: float
) -> list[tuple[float, float, int]]:
    """Error, scale and zero point of every candidate of a channel in float64, by the definition."""
    values = channel.double()
    candidates = []
    for step in range(80):
        shrink = 1 - 0.01 * step
        low, high = min(float(channel.min()), 0.0), max(float(channel.max()), 0.0)
        if symmetric:
            smallest, largest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
            scale, zero = max(-low, high) * shrink / largest, 0
        else:
            smallest, largest = 0, 2**bits - 1
            scale = (high - low) * shrink / largest
            zero = round(-low * shrink / scale)
        grid = torch.clamp(torch.round(values / scale) + zero, smallest, largest) - zero
        error = float((values - grid * scale).abs().pow(p).sum())
        candidates.append((error, scale, zero))
    return candidates


@given(
    seed=st.integers(0, 10**6),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    p=st.sampled_from([2.0, 2.4, 4.0]),
    shift=st.floats(-2, 2),
)
def test_the_search_is_the_literal_one(
    seed: int, bits: int, symmetric: bool, p: float, shift: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 40, generator=generator) + shift
    found = lp_scale(weight, bits, p=p, symmetric=symmetric)
    for channel, scale, zero in zip(weight, found.scale, found.zero_point, strict=True):
        candidates = literal_candidates(channel, bits, symmetric, p)
        least = min(error for error, *_ in candidates)
        # Of errors that differ in the eighth digit, float32 may find another one the least.
        best = [found for error, *found in candidates if error <= least * (1 + 1e-6)]
        assert any(
            float(scale) == pytest.approx(expected, rel=1e-6) and int(zero) == expected_zero
            for expected, expected_zero in best
        )


def literal_scales(rows: Tensor, bits: int, symmetric: bool) -> Tensor:
    """The errors of all candidates of all rows in float64, c × 80, by the definition."""
    low = rows.amin(1).clamp_max(0).double()
    high = rows.amax(1).clamp_min(0).double()
    errors = []
    for step in range(80):
        shrink = 1 - 0.01 * step
        if symmetric:
            smallest, largest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
            scale = torch.maximum(-low, high) * shrink / largest
            zero = torch.zeros_like(scale)
        else:
            smallest, largest = 0, 2**bits - 1
            scale = (high - low) * shrink / largest
            zero = torch.round(-low * shrink / scale)
        values = rows.double()
        grid = torch.clamp(torch.round(values / scale[:, None]) + zero[:, None], smallest, largest)
        error = values - (grid - zero[:, None]) * scale[:, None]
        errors.append(error.abs().pow(2.4).sum(1))
    return torch.stack(errors, dim=1)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    bits=st.integers(2, 6),
    symmetric=st.booleans(),
    kind=st.sampled_from(["normal", "heavy tails", "positive", "few values", "one outlier"]),
)
def test_long_rows_keep_the_best_candidate(
    seed: int, bits: int, symmetric: bool, kind: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(24, 3000, generator=generator)
    if kind == "heavy tails":
        rows = rows**3
    elif kind == "positive":
        rows = rows.abs()
    elif kind == "few values":
        # Off zero, so that no zero point lies halfway between two integers.
        rows = (rows * 3).round() + 0.25
    elif kind == "one outlier":
        rows[:, 0] = 40.0
    found = lp_scale(rows, bits, symmetric=symmetric)
    errors = literal_scales(rows, bits, symmetric)
    widest = lp_scale(rows, bits, symmetric=symmetric, steps=1).scale
    step = torch.round((1 - found.scale / widest) * 100).long()
    chosen = errors.gather(1, step[:, None]).flatten()
    assert (chosen <= errors.amin(1) * (1 + 1e-5)).all()


def test_most_candidates_of_long_rows_are_ruled_out() -> None:
    rows = torch.randn(64, 4608, generator=torch.Generator().manual_seed(0))
    shrink = 1 - 0.01 * torch.arange(80)
    scale = (rows.amax(1) - rows.amin(1))[:, None] / 7 * shrink
    zero_point = torch.round(-rows.amin(1)[:, None] * shrink / scale).int()
    alive = contenders(rows, QuantParams(scale, zero_point, 0, 7), shrink, 2.4)
    assert alive.any(dim=1).all()
    assert alive.sum(dim=1).float().mean() < 6


def test_many_pieces_are_searched_as_one() -> None:
    weight = torch.randn(70, 9, 11, 11)
    whole = lp_scale(weight, 3)
    one_by_one = [lp_scale(channel[None], 3) for channel in weight]
    assert torch.equal(whole.scale, torch.cat([params.scale for params in one_by_one]))
    assert torch.equal(whole.zero_point, torch.cat([p.zero_point for p in one_by_one]))


def test_one_scale_for_all() -> None:
    weight = torch.randn(5, 7)
    whole = lp_scale(weight, 4, per_channel=False)
    assert whole.scale.shape == ()
    assert whole.scale == lp_scale(weight.view(1, -1), 4).scale[0]
    assert fake_quantize(weight, whole).unique().numel() <= 16


@pytest.mark.parametrize("per_channel", [True, False])
def test_min_max_covers_everything(per_channel: bool) -> None:
    weight = torch.randn(6, 50)
    params = min_max_scale(weight, 8, per_channel=per_channel)
    step = params.scale.max()
    assert (fake_quantize(weight, params) - weight).abs().max() <= step * 0.51


def test_a_silent_channel_stays_silent() -> None:
    weight = torch.cat([torch.zeros(1, 9), torch.ones(1, 9)])
    rounded = fake_quantize(weight, lp_scale(weight, 2))
    assert torch.equal(rounded[0], torch.zeros(9))
    assert torch.allclose(rounded[1], torch.ones(9))


def test_powers_below_two_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        lp_scale(torch.ones(2, 2), 4, p=1.5)


@pytest.mark.parametrize("values", [torch.zeros(6), torch.tensor([1.0, torch.nan])])
def test_nothing_is_fitted_to_values_that_tell_nothing(values: Tensor) -> None:
    quantizer = ActivationQuantizer(4)
    quantizer.fit(values)
    assert float(quantizer.scale) == 1.0 and quantizer.zero_point == 0
