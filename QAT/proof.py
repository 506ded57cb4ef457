"""Evidence that a trained network runs on integers alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ompq.artifact import Artifact
from ompq.errors import OmpqError
from ompq.fixed_point import IntegerExecution, IntegerNetwork
from ompq.metrics import Accuracy, Predictions


@dataclass(frozen=True)
class Proof:
    """Accuracy of integer arithmetic, and on how many images it gives the simulation's logits."""

    accuracy: Accuracy
    equal: int


@torch.inference_mode()
def compare_with_integers(
    read: Artifact, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Proof:
    """Run a stored network by integer arithmetic and as training simulated it, image by image.

    Args:
        read: a network of integers with what it needs to run on them.
        batches: labelled images.
        device: where the simulation computes; integer arithmetic runs on the CPU.

    Raises:
        OmpqError: the network does not run on integers alone (says why), or there are no images.
    """
    network = read.network
    if not isinstance(network, IntegerNetwork):
        raise OmpqError("--integer_only needs a network of QAT; that of PTQ computes in float")
    if not read.integers:
        named = list(read.description["float_operations"].items())[:3]
        why = ", ".join(f"{name} ({what})" for name, what in named) or "rescaling or biases"
        raise OmpqError(f"this network does not run on integers alone: {why} stayed in float")
    execution = IntegerExecution(network, read.integers)
    module = network.module.to(device).eval()
    classes, known, equal = [], [], 0
    for images, labels in batches:
        logits = execution.logits(images)
        simulated = module(images.to(device)).cpu()
        equal += int((logits == simulated).all(dim=1).sum())
        classes.append(logits.topk(min(5, logits.shape[1]), dim=1).indices)
        known.append(labels)
    if not known:
        raise OmpqError("there are no images to evaluate on; check the data folder")
    return Proof(Predictions(torch.cat(classes), torch.cat(known)).accuracy(), equal)
