"""Batch norm over the batches of all ranks, on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

# PyTorch's own default, for a norm whose momentum is None (a cumulative average).
_DEFAULT_MOMENTUM = 0.1


class StandaloneBatchNorm(nn.Module):
    """A batch norm that follows no layer, and so stays in float (DenseNet, pre-activation)."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.norm = norm
        self.freeze_norm = False

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (n × channels × …)."""
        return apply_batch_norm(x, self.norm, self.freeze_norm)


def apply_batch_norm(x: Tensor, norm: _BatchNorm, frozen: bool) -> Tensor:
    """Apply a batch norm, in training with the statistics of all ranks' batches.

    Every rank must hold equally many images. A norm without running statistics always uses those
    of the batch.

    Args:
        x: Input, n × channels × ….
        norm: Batch norm whose weights, statistics and training mode are used.
        frozen: Whether the running statistics are used, and kept, in training too.

    Returns:
        The normalised input, of its shape.
    """
    training = norm.running_mean is None or (norm.training and not frozen)
    if training and norm.training and distributed.is_available() and distributed.is_initialized():
        return _normalise_over_ranks(x, norm)
    mean, variance = norm.running_mean, norm.running_var
    momentum = _read_momentum(norm)
    return batch_norm(x, mean, variance, norm.weight, norm.bias, training, momentum, norm.eps)


class _Sum(torch.autograd.Function):
    """The sum over all ranks.

    Every rank's loss depends on every rank's summand, so the gradients are summed over the ranks
    as well.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        distributed.all_reduce(total)
        return total


def _sum_over_ranks(x: Tensor) -> Tensor:
    result: Tensor = _Sum.apply(x)
    return result


def _read_momentum(norm: _BatchNorm) -> float:
    return _DEFAULT_MOMENTUM if norm.momentum is None else norm.momentum


def _normalise_over_ranks(x: Tensor, norm: _BatchNorm) -> Tensor:
    dims = [0, *range(2, x.dim())]
    shape = (1, -1) + (1,) * (x.dim() - 2)
    count = x.numel() // x.shape[1] * distributed.get_world_size()
    # Two sums, one after the other: E[x²] − E[x]² would cancel in float32.
    mean = _sum_over_ranks(x.sum(dims)) / count
    centred = x - mean.view(shape)
    variance = _sum_over_ranks(centred.square().sum(dims)) / count
    if norm.running_mean is not None and norm.running_var is not None:
        momentum = _read_momentum(norm)
        with torch.no_grad():
            norm.running_mean.lerp_(mean, momentum)
            # As in PyTorch, the running variance is the unbiased one, that of the batch is not.
            norm.running_var.lerp_(variance * (count / max(1, count - 1)), momentum)
    gain = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight
    out = centred * gain.view(shape)
    return out if norm.bias is None else out + norm.bias.view(shape)
