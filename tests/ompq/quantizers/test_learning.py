"""AdaRound and LSQ against their formulas in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ompq.quantizers import (
    ActivationQuantizer,
    AdaRound,
    dequantize,
    enabled,
    fake_quantize,
    learned_step_quantize,
    lp_scale,
    quantize,
)


def literal_soft_weight(floor: Tensor, logit: Tensor, scale: Tensor, zero: Tensor, high: int):
    """Ŵ and h(V), equations 22 and 23 of AdaRound."""
    h = torch.clamp(torch.sigmoid(logit) * 1.2 - 0.1, 0, 1)
    integers = torch.clamp(floor + h + zero, 0, high)
    return (integers - zero) * scale, h


@given(seed=st.integers(0, 10**6), bits=st.integers(2, 8), penalty=st.sampled_from([0.0, 0.3]))
def test_one_step_of_adaround_is_the_formula(seed: int, bits: int, penalty: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 6, generator=generator)
    inputs = torch.randn(8, 6, generator=generator)
    target = inputs @ weight.T
    params = lp_scale(weight, bits)
    rounding = AdaRound(weight, params)
    rounding.penalty, rounding.exponent = penalty, 7.3
    with torch.no_grad():
        rounding.logit.add_(0.1 * torch.randn(4, 6, generator=generator))
    loss = (inputs @ rounding.weight().T - target).square().sum()
    loss.backward()

    logit = rounding.logit.detach().double().requires_grad_(True)
    scale, zero = params.scale.double()[:, None], params.zero_point.double()[:, None]
    # A ratio at a whole number may fall to either side; both sides must agree where it fell.
    floor = torch.floor(weight / params.scale[:, None]).double()
    soft, h = literal_soft_weight(floor, logit, scale, zero, 2**bits - 1)
    error = (inputs.double() @ soft.T - target.double()).square().sum()
    (error + penalty * (1 - (2 * h - 1).abs().pow(7.3)).sum()).backward()
    # Elements beyond the range cannot move; the formula's clamp leaves their penalty a slope.
    free = (floor + zero >= 0) & (floor + zero < 2**bits - 1)
    assert torch.allclose(rounding.weight().double(), soft.detach(), atol=1e-5)
    assert torch.allclose(
        rounding.logit.grad[free].double(), logit.grad[free], rtol=1e-3, atol=1e-4
    )
    assert not rounding.logit.grad[~free].any()


def test_adaround_starts_at_the_weight_and_at_nearest() -> None:
    weight = torch.randn(16, 3, 3, 3)
    params = lp_scale(weight, 4)
    rounding = AdaRound(weight, params)
    inside = (quantize(weight, params) > 0) & (quantize(weight, params) < 15)
    assert torch.allclose(rounding.weight()[inside], weight[inside], atol=1e-3)
    assert torch.equal(rounding.integers(), quantize(weight, params))
    away = (rounding.weight() - dequantize(rounding.integers(), params)).abs()
    half_a_step = params.scale.view(-1, 1, 1, 1) / 2
    assert (away[inside] <= half_a_step.expand_as(away)[inside] * (1 + 1e-4)).all()


def test_adaround_settles_up_or_down() -> None:
    weight = torch.tensor([[0.5, -0.5, 1.4, 3.0]])
    params = lp_scale(weight, 3)
    rounding = AdaRound(weight, params)
    with torch.no_grad():
        rounding.logit.copy_(torch.where(torch.rand(1, 4) > 0.5, 9.0, -9.0))
    hard = dequantize(rounding.integers(), params)
    assert torch.allclose(rounding.weight(), hard, atol=1e-6)


@given(seed=st.integers(0, 10**6), bits=st.integers(2, 8), zero_share=st.floats(0, 1))
def test_the_step_size_has_the_gradient_of_lsq(seed: int, bits: int, zero_share: float) -> None:
    high = 2**bits - 1
    zero = round(zero_share * high)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(50, generator=generator) * 3
    weights = torch.randn(50, generator=generator)
    scale = torch.tensor(0.37)
    x_learned, scale_learned = x.clone().requires_grad_(True), scale.clone().requires_grad_(True)
    rounded = learned_step_quantize(x_learned, scale_learned, zero, 0, high)
    (rounded * weights).sum().backward()

    grad_scale, grad_x, values = 0.0, [], []
    for value, weight in zip(x.double().tolist(), weights.double().tolist(), strict=True):
        ratio = value / float(scale)
        integer = round(ratio)
        inside = 0 <= integer + zero <= high
        clamped = min(max(integer, -zero), high - zero)
        grad_scale += weight * (integer - ratio if inside else clamped)
        grad_x.append(weight if inside else 0.0)
        values.append(clamped * float(scale))
    assert abs(float(scale_learned.grad) - grad_scale) < 1e-3
    assert torch.allclose(x_learned.grad.double(), torch.tensor(grad_x).double())
    assert torch.allclose(rounded.double(), torch.tensor(values).double(), atol=1e-5)


@given(
    seed=st.integers(0, 10**6),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    factor=st.floats(1e-3, 1),
)
def test_step_sizes_of_channels_have_gradients_of_their_own(
    seed: int, bits: int, symmetric: bool, factor: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, factors = torch.randn(2, 3, 5, generator=generator)
    scale = torch.rand(3, 1, generator=generator) * 0.3 + 0.01
    zero = torch.randint(0, 2**bits, (3, 1), generator=generator)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    zero = torch.zeros_like(zero) if symmetric else zero
    scale.requires_grad_(True)
    out = learned_step_quantize(weight, scale, zero, low, high, gradient_factor=factor)
    (out * factors).sum().backward()
    assert scale.grad is not None
    for row in range(3):
        alone = scale.detach()[row].clone().requires_grad_(True)
        single = learned_step_quantize(weight[row], alone, int(zero[row]), low, high)
        (single * factors[row]).sum().backward()
        assert alone.grad is not None
        torch.testing.assert_close(out[row], single)
        torch.testing.assert_close(scale.grad[row], alone.grad * factor, rtol=1e-4, atol=1e-4)


@given(seed=st.integers(0, 10**6), zero_point=st.integers(0, 7), per_row=st.booleans())
def test_relu_can_be_left_to_the_step(seed: int, zero_point: int, per_row: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, factors = torch.randn(2, 4, 9, generator=generator)
    scale = torch.rand((4, 1) if per_row else (), generator=generator) * 0.5 + 0.01
    found = []
    for rectified in (False, True):
        values, step = x.clone().requires_grad_(True), scale.clone().requires_grad_(True)
        out = learned_step_quantize(
            values if rectified else values.relu(), step, zero_point, 0, 7, rectified=rectified
        )
        (out * factors).sum().backward()
        found.append((out.detach(), values.grad, step.grad))
    for apart, together in zip(*found, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_a_quantizer_rounds_only_while_enabled() -> None:
    x = torch.randn(1000)
    quantizer = ActivationQuantizer(3)
    quantizer.fit(x)
    assert torch.equal(quantizer(x), x)
    with enabled(quantizer):
        assert quantizer(x).unique().numel() <= 8
        learned = learned_step_quantize(
            x, quantizer.scale, quantizer.zero_point, quantizer.low, quantizer.high
        )
        assert torch.allclose(quantizer(x), learned, atol=1e-6)
    assert torch.equal(quantizer(x), x)


def test_a_grid_is_chosen_by_all_columns_of_an_image() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 32, 28, 28, generator=generator)
    x[..., 0] *= 0.01  # what every k-th value would see, with k a multiple of the width
    quantizer = ActivationQuantizer(4)
    quantizer.fit(x)
    best = lp_scale(x.flatten(), 4, per_channel=False)
    with enabled(quantizer):
        error = (quantizer(x) - x).abs().pow(2.4).sum()
    least = (fake_quantize(x, best) - x).abs().pow(2.4).sum()
    assert error <= least * 1.02


def test_dropping_leaves_a_share_in_float() -> None:
    x = torch.randn(10000)
    quantizer = ActivationQuantizer(2)
    quantizer.fit(x)
    quantizer.drop_probability = 0.5
    with enabled(quantizer):
        kept = (quantizer(x) == x).float().mean()
    assert 0.45 < kept < 0.55


@pytest.mark.parametrize("channels", [1, 4])
def test_a_negative_step_rounds_the_opposite(channels: int) -> None:
    """Of one channel and of several: results, and gradients for values and steps."""
    generator = torch.Generator().manual_seed(channels)
    x, weights = (torch.randn(channels, 6, 3, 3, generator=generator) for _ in range(2))
    scale = torch.rand(channels, 1, 1, 1, generator=generator) + 0.1
    for sign in (1.0, -1.0):
        given, step = x.clone().requires_grad_(True), (sign * scale).requires_grad_(True)
        result = learned_step_quantize(given, step, 0, -4, 3)
        ratio = (x / step).detach()
        integers = ratio.round().clamp(-4, 3)
        inside = integers == ratio.round()
        torch.testing.assert_close(result, integers * step)
        (result * weights).sum().backward()
        assert torch.equal(given.grad, weights * inside)
        slope = integers - ratio * inside
        expected = (slope * weights).sum((1, 2, 3), keepdim=True)
        torch.testing.assert_close(step.grad, expected, rtol=1e-4, atol=1e-4)
