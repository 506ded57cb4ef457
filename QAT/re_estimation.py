"""Batch norms whose statistics are estimated anew when training has ended.

While weights move, some of them back and forth between two integers, the moving averages of the
batch norms lag behind, and follow the last few batches alone. Averages over many batches of the
network as it is in the end mend that (Nagel et al., "Overcoming Oscillations in Quantization-Aware
Training", ICML 2022, arXiv:2203.11086, section 4.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ompq.integer.fake_quantizers import ActivationFakeQuantizer


def list_norms(module: nn.Module) -> list[_BatchNorm]:
    """List the batch norms of a network that keep running statistics."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    return [n for n in norms if n.running_mean is not None and n.track_running_stats]


@torch.no_grad()
def re_estimate_norms(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set running statistics to the averages of those of the batches; ranges and weights stay.

    The network computes as in training, quantized and normalised by the statistics of the batch; of
    several processes, by those of all. It is left in evaluation mode.

    Args:
        module: Network of integers, changed in place.
        batches: Images, n × channels × height × width each, on the network's device.
    """
    module.train()
    with _averaging(list_norms(module)), _holding_ranges(module):
        for images in batches:
            module(images)
    module.eval()


@contextmanager
def _averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let batch norms take the average of all batches while the body runs, not a moving one.

    The first batch takes the place of what was there. Nothing is set to zero before: a weight that
    is folded before it is quantized would get other integers.
    """
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked for norm in norms]
    before = [None if count is None else count.clone() for count in counts]
    for norm, count in zip(norms, counts, strict=True):
        norm.momentum = None
        if count is not None:
            count.zero_()
    try:
        yield
    finally:
        # They count the batches of the training.
        for norm, momentum, count, held in zip(norms, momenta, counts, before, strict=True):
            norm.momentum = momentum
            if count is not None and held is not None:
                count.copy_(held)


@contextmanager
def _holding_ranges(module: nn.Module) -> Iterator[None]:
    """Keep the ranges of activations while the body runs."""
    found = [each for each in module.modules() if isinstance(each, ActivationFakeQuantizer)]
    before = [each.observing for each in found]
    for each in found:
        each.observing = False
    try:
        yield
    finally:
        for each, observing in zip(found, before, strict=True):
            each.observing = observing
