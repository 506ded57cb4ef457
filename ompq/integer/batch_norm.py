"""Batch norm over the batches of all ranks, on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.fx import GraphModule
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from ompq.graph.operations import BATCH_NORMS, operation


class StandaloneBatchNorm(nn.Module):
    """A batch norm that follows no layer (DenseNet, pre-activation), trained over all ranks."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.norm = separate_from_ranks(norm)
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
    share = _count_batch(norm) if training and norm.training else 0.0
    if training and norm.training and distributed.is_available() and distributed.is_initialized():
        return _normalise_over_ranks(x, norm, share)
    # As in PyTorch, statistics that are not tracked any more are used in evaluation and kept.
    kept = not norm.training or frozen or norm.track_running_stats
    mean, variance = (norm.running_mean, norm.running_var) if kept else (None, None)
    return batch_norm(x, mean, variance, norm.weight, norm.bias, training, share, norm.eps)


def separate_from_ranks(norm: _BatchNorm) -> _BatchNorm:
    """Return a batch norm that knows of one process, in the place of a `SyncBatchNorm`.

    `apply_batch_norm` takes statistics over all ranks itself, and on any device.

    Args:
        norm: Batch norm of any class; the one that is returned shares its parameters and buffers.
    """
    if not isinstance(norm, nn.SyncBatchNorm):
        return norm
    separate = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, device="meta")
    separate._parameters, separate._buffers = norm._parameters, norm._buffers
    separate.affine, separate.track_running_stats = norm.affine, norm.track_running_stats
    return separate.train(norm.training)


def replace_standalone_norms(module: GraphModule) -> None:
    """Let plain batch norms that follow no layer be trained like those that do: over all ranks.

    Args:
        module: Traced network; it is changed in place.
    """
    nodes = [node for node in module.graph.nodes if node.op == "call_module"]
    paths = {str(node.target) for node in nodes if operation(node, module) in BATCH_NORMS}
    for path in paths:
        found = module.get_submodule(path)
        if isinstance(found, _BatchNorm):
            module.set_submodule(path, StandaloneBatchNorm(found))
    for node in module.graph.nodes:
        owner, _, attribute = str(node.target).rpartition(".")
        if node.op == "call_module" and node.target in paths:
            node.args, node.kwargs = (node.all_input_nodes[0],), {}
        elif node.op == "get_attr" and owner in paths:
            node.target = f"{owner}.norm.{attribute}"


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


@torch.no_grad()
def _count_batch(norm: _BatchNorm) -> float:
    """Count a batch of training, and return its share in the running statistics.

    Without a momentum these are the average over all batches so far.
    """
    momentum: float | None = norm.momentum
    if norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            return 1.0 / float(norm.num_batches_tracked)
    return 0.0 if momentum is None else momentum


def _normalise_over_ranks(given: Tensor, norm: _BatchNorm, share: float) -> Tensor:
    # Autocast may give bfloat16; statistics, and what is exchanged, are float32 all the same.
    x = given.float()
    dims = [0, *range(2, x.dim())]
    shape = (1, -1) + (1,) * (x.dim() - 2)
    count = x.numel() // x.shape[1] * distributed.get_world_size()
    # Two sums, one after the other: E[x²] − E[x]² would cancel in float32.
    mean = _sum_over_ranks(x.sum(dims)) / count
    centred = x - mean.view(shape)
    variance = _sum_over_ranks(centred.square().sum(dims)) / count
    kept = norm.track_running_stats
    if kept and norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            norm.running_mean.lerp_(mean, share)
            # As in PyTorch, the running variance is the unbiased one, that of the batch is not.
            norm.running_var.lerp_(variance * (count / max(1, count - 1)), share)
    gain = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight
    out = centred * gain.view(shape)
    return (out if norm.bias is None else out + norm.bias.view(shape)).to(given.dtype)
