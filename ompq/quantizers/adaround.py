"""Learned rounding of weights (AdaRound, Nagel et al., arXiv:2004.10568)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ompq.quantizers.affine import QuantParams

# The rectified sigmoid h(V) = clip(σ(V)(ζ − γ) + γ, 0, 1), equation 23.
ZETA, GAMMA = 1.1, -0.1
_STRETCH = ZETA - GAMMA
# σ(V) is so close to 0 or 1 there that h is clipped and stays.
_SETTLED = 6.0


class AdaRound(nn.Module):
    """A weight whose elements learn whether to be rounded up or down.

    `weight()` is Ŵ = s · (floor(W / s) + h(V)), clamped to the range (equations 22 and 23), and
    starts at W. Its backward pass also adds to the gradient of V that of the regulariser
    λ Σ (1 − |2h(V) − 1|^b) of equation 24 for the current `penalty` λ and `exponent` b, so that
    h is computed once.
    """

    def __init__(self, weight: Tensor, params: QuantParams) -> None:
        """Start from `weight` (channels × …, float) on the grid of `params` (same device)."""
        super().__init__()
        shape = (-1,) + (1,) * (weight.dim() - 1)
        zero_point = params.zero_point.view(shape) if params.zero_point.dim() else params.zero_point
        scale = params.scale.view(shape) if params.scale.dim() else params.scale
        ratio = weight.detach() / scale
        floor = ratio.floor()
        share = ((ratio - floor - GAMMA) / _STRETCH).clamp_(1e-4, 1 - 1e-4)
        logit = torch.logit(share)
        lowest, highest = params.low - zero_point, params.high - zero_point
        logit = torch.where(floor < lowest, -_SETTLED, logit)
        logit = torch.where(floor >= highest, _SETTLED, logit)
        self.logit = nn.Parameter(logit)
        self.floor: Tensor
        self.scale: Tensor
        self.register_buffer("floor", floor.clamp(lowest, highest - 1))
        self.register_buffer("scale", scale)
        self._zero_point = zero_point
        self.penalty = 0.0
        self.exponent = 2.0

    def weight(self) -> Tensor:
        """The soft-rounded weight, with a gradient for `logit`."""
        result: Tensor = _SoftRound.apply(
            self.logit, self.floor, self.scale, self.penalty, self.exponent
        )
        return result

    def integers(self) -> Tensor:
        """The rounding that was learned: int32, within the range."""
        up = self.logit.detach() >= 0
        return (self.floor + up + self._zero_point).int()


class _SoftRound(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logit: Tensor, floor: Tensor, scale: Tensor, penalty: float, exponent: float
    ) -> Tensor:
        sigmoid = logit.sigmoid()
        ctx.save_for_backward(sigmoid, scale)
        ctx.penalty, ctx.exponent = penalty, exponent
        soft = sigmoid.mul(_STRETCH).add_(GAMMA).clamp_(0, 1)
        return soft.add_(floor).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        sigmoid, scale = ctx.saved_tensors
        # u = 2h − 1 before clipping; clipped elements have no slope.
        centred = sigmoid.mul(2 * _STRETCH).add_(2 * GAMMA - 1)
        size = centred.abs()
        slope = torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1).mul_(size < 1)
        total = grad * scale
        if ctx.penalty:
            regulariser = size.pow_(ctx.exponent - 1).copysign_(centred)
            total.add_(regulariser, alpha=-2 * ctx.penalty * ctx.exponent)
        return total.mul_(slope).mul_(_STRETCH), None, None, None, None
