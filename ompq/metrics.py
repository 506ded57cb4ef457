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

    def __str__(self) -> str:
        return f"top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} % of {self.count} images"


@dataclass(frozen=True)
class Predictions:
    """The five likeliest classes of every image (n × 5, or fewer classes), and the labels (n).

    Labels are −1 where there are none.
    """

    classes: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_labels(self) -> bool:
        """Whether every image has a label."""
        return bool((self.labels >= 0).all())

    def accuracy(self) -> Accuracy:
        """How often the label is the likeliest class, and among the five likeliest.

        Raises:
            OmpqError: the images have no labels.
        """
        if not self.has_labels:
            raise OmpqError(
                "accuracy needs labels, and this data set has none; use a folder "
                "with one sub-folder per class"
            )
        hits = self.classes == self.labels[:, None]
        return Accuracy(_percent(hits[:, 0]), _percent(hits.any(dim=1)), len(self))

    def agreement(self, other: Predictions) -> float:
        """How often both name the same likeliest class, in per cent."""
        return _percent(self.classes[:, 0] == other.classes[:, 0])


def _percent(hits: Tensor) -> float:
    return 100 * int(hits.sum()) / len(hits)


def kl_divergence(expected: Tensor, logits: Tensor) -> float:
    """Σ over images of KL(softmax(expected) ‖ softmax(logits)), in nats.

    Args:
        expected: n × classes.
        logits: n × classes.
    """
    target = expected.double().log_softmax(dim=1)
    found = logits.double().log_softmax(dim=1)
    return float((target.exp() * (target - found)).sum())


def drawn_labels(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One class per image, drawn from the network's own prediction.

    The squared gradients of their log-likelihood have the Fisher information as expectation.

    Args:
        logits: n × classes.
        generator: on the CPU, so that every device draws the same.

    Returns:
        n classes, on the device of `logits`.
    """
    shares = logits.detach().float().softmax(dim=1).cpu()
    return torch.multinomial(shares, 1, generator=generator).flatten().to(logits.device)


@torch.inference_mode()
def predict(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Predictions:
    """What `network` (put on `device`, in evaluation mode) says to batches of images and labels.

    Raises:
        OmpqError: there are no images.
    """
    network = network.to(device).eval()
    classes, known = [], []
    for images, labels in batches:
        logits = network(images.to(device))
        classes.append(logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu())
        known.append(labels)
    if not known:
        raise OmpqError("there are no images to evaluate on; check the data folder")
    return Predictions(torch.cat(classes), torch.cat(known))


def evaluate(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Accuracy:
    """Accuracy of `network` (put on `device`, in evaluation mode) on labelled batches.

    Raises:
        OmpqError: there are no images, or they have no labels.
    """
    return predict(network, batches, device).accuracy()
