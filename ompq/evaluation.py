"""How good a network is: its accuracy, its agreement and its divergence from another network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ompq.data.batching import iterate_pairs
from ompq.errors import OmpqError

NO_IMAGES = "there are no images to evaluate on; check the data folder"


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 accuracy in per cent, over `count` labelled images."""

    top1: float
    top5: float
    count: int

    def __str__(self) -> str:
        return f"top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} % of {self.count} images"


@dataclass(frozen=True)
class Predictions:
    """Likeliest classes and labels of n images.

    Attributes:
        classes: n × 5 integers, the five likeliest classes of every image, likeliest first; fewer
            columns where the network has fewer classes.
        labels: n integers; −1 where an image has no label.
    """

    classes: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_labels(self) -> bool:
        """Tell whether every image has a label."""
        return bool((self.labels >= 0).all())

    def accuracy(self) -> Accuracy:
        """Measure how often the label is the likeliest class, and among the five likeliest.

        Raises:
            OmpqError: the images have no labels.
        """
        if not self.has_labels:
            raise OmpqError(
                "accuracy needs labels, and this data set has none; use a folder "
                "with one sub-folder per class"
            )
        hits = self.classes == self.labels[:, None]
        return Accuracy(_to_percent(hits[:, 0]), _to_percent(hits.any(dim=1)), len(self))

    def agreement(self, other: Predictions) -> float:
        """Measure on how many images two networks name one likeliest class, in per cent.

        Args:
            other: Predictions of the other network for these images, in this order.
        """
        return _to_percent(self.classes[:, 0] == other.classes[:, 0])


def _to_percent(hits: Tensor) -> float:
    return 100 * int(hits.sum()) / len(hits)


def kl_divergence(expected: Tensor, logits: Tensor) -> float:
    """Sum KL(softmax(expected) ‖ softmax(logits)) over images, in nats.

    Args:
        expected: Logits of the reference network, n × classes.
        logits: Logits of the network under test, n × classes.

    >>> kl_divergence(torch.zeros(3, 10), torch.ones(3, 10))  # equal but for a constant
    0.0
    """
    # In float64: where the logits hardly differ, positive and negative terms nearly cancel.
    target = expected.double().log_softmax(dim=1)
    found = logits.double().log_softmax(dim=1)
    return float((target.exp() * (target - found)).sum())


def draw_labels(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one class per image from the network's own prediction.

    The squared gradients of their log-likelihood have the Fisher information as expectation.

    Args:
        logits: Logits of the network, n × classes.
        generator: Random generator on the CPU, so that the classes do not depend on the device.

    Returns:
        n classes, on the device of `logits`.

    Raises:
        OmpqError: The network gives something else than one row of logits per image.
    """
    if logits.dim() != 2:
        shape = "×".join(map(str, logits.shape[1:]))
        raise OmpqError(
            f"for each image the network gives {shape} values; Fisher information and Hessian need "
            "one row of logits, n × classes: choose another metric or loss"
        )
    shares = logits.detach().float().softmax(dim=1).cpu()
    return torch.multinomial(shares, 1, generator=generator).flatten().to(logits.device)


def flatten_logits(output: object, count: int) -> Tensor:
    """Return what a network gives as logits, images × classes.

    Args:
        output: What the network gives: n × classes, with further dimensions of length 1 or without.
        count: Number n of the images.

    Raises:
        OmpqError: It is something else.

    >>> flatten_logits(torch.zeros(2, 10, 1, 1), 2).shape
    torch.Size([2, 10])
    """
    wanted = f"logits of {count} images are a tensor of {count} × classes"
    if not isinstance(output, Tensor):
        raise OmpqError(f"the network gives a {type(output).__name__}; {wanted}")
    if output.dim() >= 2 and output.shape[0] == count and output[0].numel() == output.shape[1]:
        return output.flatten(1)
    shape = "×".join(map(str, output.shape)) or "a single number"
    raise OmpqError(f"the network gives {shape}; {wanted}")


def doubt_accuracy(top1: float, count: int, num_classes: int) -> list[str]:
    """Tell a user of an accuracy that is hardly better than guessing, where images suffice to tell.

    Suspicious is what lies below the chance c plus half of c·(1 − c) (for many classes, one and a
    half times the chance), or within two standard errors of guessing. Images suffice where a
    network half way between guessing and no mistake would be told from that by two of its own
    standard errors.

    Args:
        top1: Top-1 accuracy of the float network, in per cent.
        count: Number of images that it was measured on.
        num_classes: Number of classes that the network tells.

    Returns:
        A note in a list; none where all is well.

    >>> doubt_accuracy(top1=71.0, count=500, num_classes=1000)
    []
    >>> len(doubt_accuracy(top1=0.2, count=500, num_classes=1000))
    1
    """
    chance = 1 / num_classes
    limit = chance + max(chance * (1 - chance) / 2, 2 * _standard_error(chance, count))
    fair = (1 + chance) / 2
    if fair - 2 * _standard_error(fair, count) <= limit or top1 >= 100 * limit:
        return []
    return [
        f"the float network is right on {top1:.2f} % of {count} images, which is "
        f"hardly better than guessing ({100 * chance:.2g} %): check the order of the classes, the "
        "preprocessing (`resize`, `mean`, `std`) and the weights before what follows"
    ]


def _standard_error(share: float, count: int) -> float:
    return math.sqrt(share * (1 - share) / count)


def check_is_module(network: object) -> None:
    """Refuse what is no module, and say what is to be given in its place.

    Raises:
        OmpqError: It is none.
    """
    if isinstance(network, nn.Module):
        return
    kind, held = type(network).__name__, getattr(network, "network", network)
    path = ("network." if held is not network else "") + "module"
    found = isinstance(getattr(held, "module", None), nn.Module)
    wanted = f"give its `{path}`" if found else "give a torch.nn.Module"
    raise OmpqError(f"the network to evaluate is a {kind}; {wanted}")


def find_device(network: nn.Module) -> torch.device:
    """Return the device of a network's parameters; the CPU where it has none."""
    parameter = next(network.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def in_evaluation(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode while the body runs, and every part back after it.

    Args:
        network: Network whose parts may be in different modes.
    """
    modes = {part: part.training for part in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@torch.inference_mode()
def predict(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | None = None,
    *,
    may_be_empty: bool = False,
) -> Predictions:
    """Predict the classes of batches of images.

    Args:
        network: Network; it is moved to `device`, and in evaluation mode from now on.
        batches: Pairs of images (n × channels × height × width, normalised) and labels (n).
        device: Device that computes; None for the network's own.
        may_be_empty: Whether no images at all are no error, since other ranks have some.

    Raises:
        OmpqError: There are no images, or the network gives no logits.
    """
    check_is_module(network)
    device = device or find_device(network)
    network = network.to(device).eval()
    classes, known = [], []
    for images, labels in iterate_pairs(batches):
        logits = flatten_logits(network(images.to(device)), len(images))
        classes.append(logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu())
        known.append(labels)
    if not known and may_be_empty:
        return Predictions(torch.empty(0, 1, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    if not known:
        raise OmpqError(NO_IMAGES)
    return Predictions(torch.cat(classes), torch.cat(known))


def evaluate(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | None = None,
) -> Accuracy:
    """Measure the accuracy of a network on labelled images.

    Args:
        network: Network; it is moved to `device`, and in evaluation mode from now on.
        batches: Pairs of images (n × channels × height × width, normalised) and labels (n).
        device: Device that computes; None for the network's own.

    Raises:
        OmpqError: there are no images, or they have no labels.
    """
    return predict(network, batches, device).accuracy()
