"""Evidence that a quantized network runs on integers alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ompq.artifact import Artifact
from ompq.data import iterate_pairs
from ompq.errors import OmpqError
from ompq.evaluation import Accuracy, Predictions, find_device
from ompq.integer import (
    IntegerExecution,
    IntegerNetwork,
    describe_operations,
    export_integers,
)
from ompq.quantized import QuantizedNetwork

# Operations in float that a message names.
_NAMED = 5


@dataclass(frozen=True)
class Verification:
    """Result of running a network by integer arithmetic beside its simulation.

    Attributes:
        accuracy: Accuracy of integer arithmetic.
        equal: Number of images for which it gives the logits of the simulation, to the bit.
    """

    accuracy: Accuracy
    equal: int

    def __str__(self) -> str:
        return (
            f"{self.accuracy}; {self.equal} of {self.accuracy.count} images give the logits of the "
            "simulation to the bit"
        )


@torch.inference_mode()
def verify(
    network: IntegerNetwork | QuantizedNetwork | Artifact,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | None = None,
) -> Verification:
    """Run a network by integer arithmetic and as it is evaluated, and compare the logits.

    Args:
        network: Network of integers, or one of `PTQ` that holds its own; or one read from its file.
        batches: Batches of images (n × channels × height × width, normalised) and labels (n).
        device: Device that the simulation computes on, None for the network's own; integer
            arithmetic runs on the CPU.

    Raises:
        OmpqError: The network does not run on integers alone (says why), or there are no images.
    """
    if isinstance(network, Artifact):
        network, numbers = _read_integers(network)
    else:
        network = _find_integers(network)
        numbers = export_integers(network)
    device = device or find_device(network.module)
    execution = IntegerExecution(network, numbers)
    module = network.module.to(device).eval()
    classes, known, equal = [], [], 0
    for images, labels in iterate_pairs(batches):
        logits = execution.logits(images)
        simulated = module(images.to(device)).cpu()
        equal += int((logits == simulated).all(dim=1).sum())
        classes.append(logits.topk(min(5, logits.shape[1]), dim=1).indices)
        known.append(labels)
    if not known:
        raise OmpqError("there are no images to evaluate on; check the data folder")
    return Verification(Predictions(torch.cat(classes), torch.cat(known)).accuracy(), equal)


def _find_integers(network: IntegerNetwork | QuantizedNetwork) -> IntegerNetwork:
    found = network if isinstance(network, IntegerNetwork) else network.integers
    if found is None:
        raise OmpqError("this network's activations are in float: quantize them too (`act_quant`)")
    return found


def _read_integers(read: Artifact) -> tuple[IntegerNetwork, Mapping[str, Tensor]]:
    """Return a stored network and its integers, or say why it has none."""
    network = _find_integers(read.network)
    if not read.integers or not network.runs_on_integers:
        named = describe_operations(network.module, network.float_operations)
        why = ", ".join(named[:_NAMED]) or "rescaling or biases"
        raise OmpqError(f"this network does not run on integers alone: {why} stayed in float")
    return network, read.integers
