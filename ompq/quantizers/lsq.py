"""Fake quantization with a learned step size (LSQ, Esser et al., arXiv:1902.08153)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def learned_step_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: int | Tensor,
    low: int,
    high: int,
    *,
    rectified: bool = False,
) -> Tensor:
    """Fake-quantize floats with a gradient for the scale too: the learned step size.

    x̂ = (clamp(round(x / s) + z, low, high) − z) · s. Gradients (LSQ equations 3 and 5, without the
    gradient scale): with v = x / s, inside the range ∂x̂/∂x = 1 and ∂x̂/∂s = round(v) − v; outside
    ∂x̂/∂x = 0 and ∂x̂/∂s is the bound reached, minus z.

    Args:
        x: Floats of any shape.
        scale: Scale s, positive float, of a shape that broadcasts to that of x.
        zero_point: Zero point z, within low..high; a tensor has the scale's shape.
        low: Smallest integer.
        high: Largest integer.
        rectified: Whether ReLU comes first, whose gradient it has below 0; cheaper here than alone.
    """
    # What is compiled is fused anyway, and must not look at values.
    if scale.numel() == 1 and x.device.type == "cpu" and not torch.compiler.is_compiling():
        zero_point = int(zero_point)
        result: Tensor = _SingleLearnedStep.apply(
            x, scale, 0 if rectified else low - zero_point, high - zero_point, rectified
        )
        return result
    x = x.relu() if rectified else x
    result = _LearnedStep.apply(x, scale, low - zero_point, high - zero_point)
    return result


class _SingleLearnedStep(torch.autograd.Function):
    """The case of one step size on the CPU, in a quarter of the time.

    With x̂ the result, Σ ∂x̂/∂s · g = (Σ g·x̂ − Σ g·x over what is inside) / s.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, lowest: int, highest: int, rectified: bool
    ) -> Tensor:
        step = float(scale)
        result = torch.mul(x, 1 / step).round_().clamp_(lowest, highest).mul_(step)
        ctx.save_for_backward(x, result, scale)
        # Whatever rounds to an integer of the range lies in it.
        ctx.range = 0.0 if rectified else (lowest - 0.5) * step, (highest + 0.5) * step
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, result, scale = ctx.saved_tensors
        grad_x = torch.ops.aten.hardtanh_backward(grad, x, *ctx.range)
        grad_scale = None
        if ctx.needs_input_grad[1]:
            total = torch.dot(grad.flatten(), result.flatten())
            total -= torch.dot(grad_x.flatten(), x.flatten())
            grad_scale = (total / scale).view(scale.shape)
        return grad_x if ctx.needs_input_grad[0] else None, grad_scale, None, None, None


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, lowest: Any, highest: Any) -> Tensor:
        ratio = x / scale
        ctx.save_for_backward(ratio, scale)
        ctx.bounds = lowest, highest
        return torch.clamp(ratio.round(), lowest, highest).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        ratio, scale = ctx.saved_tensors
        lowest, highest = ctx.bounds
        rounded = ratio.round()
        clamped = rounded.clamp(lowest, highest)
        # In place and as floats: 1 inside the range, 0 outside.
        inside = rounded.eq_(clamped)
        grad_x = grad * inside if ctx.needs_input_grad[0] else None
        grad_scale = None
        if ctx.needs_input_grad[1]:
            # round(v) − v inside, the bound outside, where nothing is taken off.
            slope = torch.addcmul(clamped, ratio, inside, value=-1)
            if scale.numel() == 1:
                grad_scale = torch.dot(slope.flatten(), grad.flatten()).view(scale.shape)
            else:
                grad_scale = slope.mul_(grad).sum_to_size(scale.shape)
        return grad_x, grad_scale, None, None
