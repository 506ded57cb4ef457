"""Networks converted to integers, for tests of what the integers are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ompq.assignment import uniform
from ompq.graph import NetworkGraph, trace
from ompq.integer import (
    ConversionSettings,
    IntegerExecution,
    IntegerNetwork,
    calibrate,
    convert_to_integers,
    export_integers,
    prove,
    start_learning_steps,
)


def build(
    network: nn.Module | NetworkGraph, images: Tensor, bits: int = 8, **settings: Any
) -> IntegerNetwork:
    """Convert a network to one width, calibrate it, and let its integers be compared."""
    is_traced = isinstance(network, NetworkGraph)
    graph = network if is_traced else trace(network, tuple(images.shape[1:]))
    assignment = uniform(graph.groups, bits, bits)
    chosen = ConversionSettings(**settings)

    widths = assignment.layer_bits(), assignment.layer_act_bits()

    def convert(left_in_float: frozenset[str]) -> IntegerNetwork:
        return convert_to_integers(graph, *widths, chosen, left_in_float)

    def start(converted: IntegerNetwork) -> None:
        calibrate(converted, [images], torch.device("cpu"))
        if chosen.learned:
            start_learning_steps(converted, per_channel=True)

    return prove(convert, start, graph, images)


def train(network: IntegerNetwork, images: Tensor) -> None:
    """Take two steps."""
    trained = [p for p in network.module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.01)
    network.module.train()
    for _ in range(2):
        optimizer.zero_grad()
        network.module(images).square().mean().backward()
        optimizer.step()
    network.module.eval()


@torch.inference_mode()
def count_equal(network: IntegerNetwork, images: Tensor) -> int:
    """Count the images for which integers give the simulation's logits to the bit."""
    execution = IntegerExecution(network, export_integers(network, mixed=True))
    equal = execution.logits(images) == network.module(images)
    assert execution.floats <= network.float_operations.keys()
    return int(equal.all(dim=1).sum())


def measure_error(network: IntegerNetwork, original: nn.Module, images: Tensor) -> float:
    """Measure how far logits are from the float network's, in relation to these."""
    with torch.inference_mode():
        expected = original.eval()(images).flatten(1)
        return float((network.module(images) - expected).norm() / expected.norm())
