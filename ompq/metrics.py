"""How good a network is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ompq.errors import OmpqError


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 in per cent over `count` labelled images."""

    top1: float
    top5: float
    count: int


@torch.inference_mode()
def evaluate(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Accuracy:
    """Accuracy of `network` (put on `device`, in evaluation mode) on labelled batches.

    Raises:
        OmpqError: there are no images, or they have no labels.
    """
    network = network.to(device).eval()
    correct1 = correct5 = count = 0
    for images, labels in batches:
        if (labels < 0).any():
            raise OmpqError(
                "accuracy needs labels, and this data set has none; use a folder "
                "with one sub-folder per class"
            )
        logits = network(images.to(device))
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels.to(device).view(-1, 1)
        correct1 += int(best[:, 0].sum())
        correct5 += int(best.sum())
        count += len(labels)
    if count == 0:
        raise OmpqError("there are no images to evaluate on; check the data folder")
    return Accuracy(100 * correct1 / count, 100 * correct5 / count, count)
