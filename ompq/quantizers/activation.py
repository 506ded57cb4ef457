"""The fake quantizer of one activation: off, rounding, or learning its step size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ompq.quantizers.affine import QuantParams, fake_quantize
from ompq.quantizers.lsq import learned_step_quantize
from ompq.quantizers.scale import fit_activation_scale


class ActivationQuantizer(nn.Module):
    """An affine fake quantizer with one scale for the whole tensor.

    Values pass untouched until `enabled` is set. `drop_probability` leaves that share of the
    values in float, chosen anew at each call (QDrop, Wei et al., arXiv:2203.05740); it is 0 outside
    of training. The scale is a parameter, so that it can be learned.

    Args:
        bits: Width of the integers.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.low, self.high = 0, 2**bits - 1
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)
        self.zero_point = 0
        self.enabled = False
        self.drop_probability = 0.0

    @property
    def params(self) -> QuantParams:
        """Return a copy of scale, zero point and range, on the CPU."""
        zero_point = torch.tensor(self.zero_point, dtype=torch.int32)
        return QuantParams(self.scale.detach().cpu().clone(), zero_point, self.low, self.high)

    @torch.no_grad()
    def set(self, params: QuantParams) -> None:
        """Take over scale, zero point and range.

        Args:
            params: Scalars, on any device.
        """
        self.scale.copy_(params.scale)
        self.zero_point = int(params.zero_point)
        self.low, self.high = params.low, params.high

    def fit(self, x: Tensor) -> None:
        """Choose scale and zero point for values like those of `x`, by L_2.4 search.

        Args:
            x: Values of the activation, of any shape; nothing is chosen for none, for those that
                are all zero, or for NaN.
        """
        if x.numel() and x.any() and bool(x.isfinite().all()):
            self.set(fit_activation_scale(x.detach(), self.bits))

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize values of any shape, where enabled."""
        if not self.enabled:
            return x
        bounds = self.zero_point, self.low, self.high
        # With gradients, by the operator that has one for the scale, else by the faster one.
        if self.scale.requires_grad or x.requires_grad:
            rounded = learned_step_quantize(x, self.scale, *bounds)
        else:
            zero_point = torch.tensor(self.zero_point, dtype=torch.int32, device=x.device)
            rounded = fake_quantize(x, QuantParams(self.scale, zero_point, self.low, self.high))
        if self.drop_probability:
            kept = torch.rand_like(x) < self.drop_probability
            return torch.where(kept, x, rounded)
        return rounded

    def extra_repr(self) -> str:
        """Return what `print` shows of the module."""
        return f"bits={self.bits}, enabled={self.enabled}"


def activation_quantizers(network: nn.Module) -> dict[str, ActivationQuantizer]:
    """Return all activation quantizers of a network, by their paths."""
    return {n: m for n, m in network.named_modules() if isinstance(m, ActivationQuantizer)}


@contextmanager
def enabled(network: nn.Module, state: bool = True) -> Iterator[None]:
    """Switch the activation quantizers of a network on (or off) while the body runs.

    Args:
        network: Network, or a module of it.
        state: Whether they are on.
    """
    quantizers = list(activation_quantizers(network).values())
    before = [quantizer.enabled for quantizer in quantizers]
    for quantizer in quantizers:
        quantizer.enabled = state
    try:
        yield
    finally:
        for quantizer, was in zip(quantizers, before, strict=True):
            quantizer.enabled = was
