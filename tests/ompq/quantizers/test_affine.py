"""Fake quantization against PyTorch's fused operators, values and gradients."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ompq.quantizers import QuantParams, dequantize, fake_quantize, quantize, round_to


@given(
    seed=st.integers(0, 10**6),
    bits=st.sampled_from([2, 3, 4, 8, 16]),
    signed=st.booleans(),
    scale=st.floats(1e-3, 2),
)
def test_it_is_the_fused_operator(seed: int, bits: int, signed: bool, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    low = -(2 ** (bits - 1)) if signed else 0
    high = low + 2**bits - 1
    zero = torch.randint(low, high + 1, (), generator=generator, dtype=torch.int32)
    params = QuantParams(torch.tensor(scale), zero, low, high)
    # Away from ties and bounds, where a last digit decides.
    whole = torch.randint(low - 5, high + 6, (64,), generator=generator) - zero
    x = (whole + 0.4 * (2 * torch.rand(64, generator=generator) - 1)) * params.scale
    factors = torch.randn(64, generator=generator)
    ours, fused = x.clone().requires_grad_(), x.clone().requires_grad_()
    out = fake_quantize(ours, params)
    expected = torch.fake_quantize_per_tensor_affine(fused, params.scale, zero, low, high)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(out, dequantize(quantize(x, params), params))
    (out * factors).sum().backward()
    (expected * factors).sum().backward()
    torch.testing.assert_close(ours.grad, fused.grad)


def test_rounding_passes_gradients_through() -> None:
    x = torch.tensor([[0.3, -0.8], [2.0, 5.1]], requires_grad=True)
    scale = torch.tensor([[0.5], [2.0]])
    out = round_to(x, scale)
    torch.testing.assert_close(out, torch.tensor([[0.5, -1.0], [2.0, 6.0]]))
    out.mul(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
