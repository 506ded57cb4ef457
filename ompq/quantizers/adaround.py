"""Learned rounding of weights (AdaRound, Nagel et al., arXiv:2004.10568)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ompq.quantizers.affine import QuantParams

# The rectified sigmoid h(V) = clip(σ(V)(ζ − γ) + γ, 0, 1), equation 23.
ZETA = 1.1
GAMMA = -0.1
_STRETCH = ZETA - GAMMA
# Beyond these σ(V) is clipped.
_LEAST, _MOST = -GAMMA / _STRETCH, (1 - GAMMA) / _STRETCH
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
        """Start from a weight, which rounds up or down to multiples of its scale.

        Args:
            weight: Weight, channels × …, float.
            params: Scale, zero point and range of its integers, on its device.
        """
        super().__init__()
        shape = (-1,) + (1,) * (weight.dim() - 1)
        zero_point = params.zero_point.view(shape) if params.zero_point.dim() else params.zero_point
        scale = params.scale.view(shape) if params.scale.dim() else params.scale
        ratio = weight.detach() / scale
        floor = ratio.floor()
        # h(V) starts at the fraction that flooring cuts off.
        share = ((ratio - floor - GAMMA) / _STRETCH).clamp_(1e-4, 1 - 1e-4)
        logit = torch.logit(share)
        lowest, highest = params.low - zero_point, params.high - zero_point
        # Beyond the range there is no choice: the weight is its bound.
        logit = torch.where(floor < lowest, -_SETTLED, logit)
        logit = torch.where(floor >= highest, _SETTLED, logit)
        self.logit = nn.Parameter(logit)
        floor = floor.clamp(lowest, highest - 1)
        # Neither parameters nor buffers: no state that a state dict would hold.
        self.floor = floor.to(torch.int16)
        self.zero_point = zero_point
        # Ŵ = base + clip(σ(V)) · factor, in fewer operations than by the formula.
        self.base, self.factor = (floor + GAMMA) * scale, _STRETCH * scale
        self.sigmoid, self.soft, self.work = (torch.empty_like(floor) for _ in range(3))
        self.penalty = 0.0
        self.exponent = 2.0

    def weight(self) -> Tensor:
        """Return the soft-rounded weight, differentiable in `logit`; valid until the next call."""
        result: Tensor = _SoftRounding.apply(self.logit, self)
        return result

    def integers(self) -> Tensor:
        """Return the integers of the rounding that was learned: int32, within the range."""
        up = self.logit.detach() >= 0
        return (self.floor + up + self.zero_point).int()


class _SoftRounding(torch.autograd.Function):
    """Soft rounding in memory of the module: fresh memory would cost more than the arithmetic."""

    @staticmethod
    def forward(ctx: Any, logit: Tensor, rounding: AdaRound) -> Tensor:
        ctx.rounding = rounding
        torch.sigmoid(logit, out=rounding.sigmoid)
        soft = torch.clamp(rounding.sigmoid, _LEAST, _MOST, out=rounding.soft)
        torch.addcmul(rounding.base, soft, rounding.factor, out=soft)
        return soft.view_as(soft)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rounding: AdaRound = ctx.rounding
        sigmoid = rounding.sigmoid
        total = grad * rounding.factor
        if rounding.penalty:
            # With u = 2h − 1 = 2(ζ − γ)(σ − ½): |u|^(b−1) by way of logarithms, which are faster
            # than powers.
            power = rounding.exponent - 1
            regulariser = torch.sub(sigmoid, 0.5, out=rounding.work).abs_().log2_()
            regulariser.mul_(power).exp2_().copysign_(rounding.logit.detach())
            slope = 2 * rounding.penalty * rounding.exponent * _STRETCH * (2 * _STRETCH) ** power
            total.add_(regulariser, alpha=-slope)
        # Clipped elements have no slope.
        torch.ops.aten.hardtanh_backward.grad_input(total, sigmoid, _LEAST, _MOST, grad_input=total)
        slopes = torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1, out=rounding.work)
        return total.mul_(slopes), None
