"""A simulated network that was written to its file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from support import lively

from ompq import artifact
from ompq.assignment import uniform
from ompq.graph import trace
from ompq.preprocess import Preprocess
from ompq.quantized import QuantizedNetwork, QuantizedWeight, make_quantizable
from ompq.quantizers import min_max_scale, quantize
from ompq.zoo import load_network

PREPROCESS = Preprocess(16, 16, mean=(0.4, 0.5, 0.6))
IMAGES = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@dataclass
class Saved:
    """A network, and the folder that holds its file."""

    network: QuantizedNetwork
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / artifact.FILE


def save(folder: Path, *, symmetric: bool, per_channel: bool, activations: bool) -> Saved:
    torch.manual_seed(0)
    source = load_network("small_resnet", num_classes=7)
    lively(source.module)
    graph = trace(source.module, (3, 16, 16))
    assignment = uniform(graph.groups, 3, 5)
    network = make_quantizable(graph, assignment)
    for layer, bits in assignment.layer_bits().items():
        weight = network.graph.layer_module(layer).weight
        params = min_max_scale(weight, bits, symmetric=symmetric, per_channel=per_channel)
        network.set_weight(layer, QuantizedWeight.of(quantize(weight, params), params))
    for quantizer in network.activations().values():
        quantizer.fit(IMAGES)
        quantizer.enabled = activations
    saved = Saved(network, folder)
    artifact.save_quantized(saved.file, network, assignment, source=source, preprocess=PREPROCESS)
    return saved
