"""Biases corrected for what quantization does to the means of a block's layers.

Rounded weights and activations shift what a layer gives on average, in depthwise convolutions most
of all, whose channels have few weights each. The bias takes the shift back, channel by channel, on
the calibration images (Nagel et al., "Data-Free Quantization through Weight Equalization and Bias
Correction", ICCV 2019, arXiv:1906.04721, appendix D).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter

from ompq.graph import NetworkGraph
from PTQ.examples import Examples, measure_loss

# Images that the means are taken of.
_IMAGES = 256


@dataclass(frozen=True)
class CorrectedBiases:
    """Biases of a block that were corrected.

    Attributes:
        biases: Layer → bias; empty where correcting them did not lower the loss.
        loss_before: Loss of the block before; None where they were left.
        loss_after: Loss with them.
    """

    biases: dict[str, Tensor] = field(default_factory=dict)
    loss_before: float | None = None
    loss_after: float | None = None


class _Measuring(Interpreter):
    """An interpreter that takes the mean per channel of what layers give."""

    def __init__(self, block: GraphModule, layers: Collection[str]) -> None:
        super().__init__(block)
        self.layers = layers
        self.means: dict[str, Tensor] = {}

    def call_module(self, target: object, args: tuple, kwargs: dict) -> object:
        output = super().call_module(str(target), args, kwargs)
        if target in self.layers:
            self.means[str(target)] = _average(self.fetch_attr(str(target)), output)
        return output


class _Correcting(Interpreter):
    """An interpreter that adds to the bias of a layer what its mean lacks, and goes on with it."""

    def __init__(self, block: GraphModule, means: dict[str, Tensor]) -> None:
        super().__init__(block)
        self.means = means

    def call_module(self, target: object, args: tuple, kwargs: dict) -> object:
        output = super().call_module(str(target), args, kwargs)
        mean = self.means.get(str(target))
        if mean is None:
            return output
        layer = self.fetch_attr(str(target))
        layer.bias.add_(mean - _average(layer, output))
        return super().call_module(str(target), args, kwargs)


def _average(layer: nn.Module, output: Tensor) -> Tensor:
    channel = output.dim() - (1 if isinstance(layer, nn.Linear) else 3)
    return output.mean([dim for dim in range(output.dim()) if dim != channel])


@torch.no_grad()
def correct_biases(
    source: GraphModule,
    target: GraphModule,
    layers: Collection[str],
    examples: Examples,
    power: float,
) -> CorrectedBiases:
    """Correct the biases of a block's layers in place, if its loss falls by it.

    Args:
        source: Block of the float network.
        target: Block of the quantized network, with the weights and scales that will be there.
        layers: Layers of the block whose biases may change.
        examples: Inputs and targets of the block.
        power: Power p of the loss.
    """
    if not layers:
        return CorrectedBiases()
    biases = {layer: target.get_parameter(f"{layer}.bias") for layer in layers}
    index = torch.arange(min(_IMAGES, len(examples)))
    measuring = _Measuring(source, biases)
    measuring.run(*examples.take_inputs(index, of_float=True))
    given = {layer: bias.clone() for layer, bias in biases.items()}
    before = measure_loss(target, examples, {}, power)
    _Correcting(target, measuring.means).run(*examples.take_inputs(index))
    after = measure_loss(target, examples, {}, power)
    if after < before:
        corrected = {layer: bias.clone() for layer, bias in biases.items()}
        return CorrectedBiases(corrected, before, after)
    for layer, bias in biases.items():
        bias.copy_(given[layer])
    return CorrectedBiases()


def find_own_biases(graph: NetworkGraph) -> set[str]:
    """Find the layers that are called once, with a bias that no other layer has."""
    once = [name for name, layer in graph.layers.items() if len(layer.nodes) == 1]
    biases = {name: graph.layer_module(name).bias for name in graph.layers}
    counts = Counter(id(bias) for bias in biases.values())
    return {name for name in once if biases[name] is not None and counts[id(biases[name])] == 1}
