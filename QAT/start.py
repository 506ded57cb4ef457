"""Where a fine-tuning starts: first ranges from images, or the grids of a finished PTQ."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ompq.artifact import Artifact
from ompq.errors import OmpqError
from ompq.fixed_point import IntegerNetwork
from ompq.fixed_point.grids import FixedWeightGrid, LearnedWeightGrid, learned_grid
from ompq.graph import activation_sites
from ompq.quantized import QuantizedNetwork


@torch.no_grad()
def calibrate(network: IntegerNetwork, batches: Iterable[Tensor], device: torch.device) -> None:
    """Give activations their first ranges from images; weights and batch norms stay as they are."""
    layers = network.layers().values()
    frozen = [layer.freeze_norm for layer in layers]
    network.freeze_norms()
    network.module.train()
    for images in batches:
        network.module(images.to(device))
    for layer, was in zip(layers, frozen, strict=True):
        layer.freeze_norm = was
    network.module.eval()


def learn_steps(network: IntegerNetwork, per_channel: bool) -> None:
    """From now on step sizes are learned (LSQ), from the grids that fit the weights best."""
    for layer in network.layers().values():
        weight = layer.folded()[0].detach()
        if isinstance(layer.grid, FixedWeightGrid):
            layer.grid = LearnedWeightGrid(layer.grid.params(weight))
        else:
            layer.grid = learned_grid(weight, layer.grid.bits, per_channel)
    network.observe(False)


@torch.no_grad()
def take_over(network: IntegerNetwork, source: Artifact) -> list[str]:
    """Weights, biases and grids of a network that `PTQ` quantized.

    The network must be of the same structure with batch norm folded. Grids stay as they are while
    it is trained.

    Args:
        network: takes them over.
        source: gives them.

    Returns:
        names of the activations whose ranges images must give, since PTQ left them in float.

    Raises:
        OmpqError: the file is not of PTQ, or of another network.
    """
    given = source.network
    if not isinstance(given, QuantizedNetwork):
        raise OmpqError("--init_from takes the output folder of PTQ; go on with QAT by --resume")
    for name, layer in network.layers().items():
        if name not in given.weights:
            raise OmpqError(f"--init_from is of another network: it does not hold {name}")
        weight = given.weights[name]
        layer.grid = FixedWeightGrid(weight.params)
        layer.layer.weight.copy_(weight.values())
        bias = given.graph.layer_module(name).bias
        if layer.layer.bias is not None and bias is not None:
            layer.layer.bias.copy_(bias)
    quantizers = given.activations()
    by_layer = {
        layer: site for site, readers in activation_sites(given.graph).items() for layer in readers
    }
    missing = []
    for name, layer in network.layers().items():
        quantizer = quantizers.get(by_layer.get(name, ""))
        if quantizer is None or not quantizer.enabled:
            missing.append(name)
        else:
            layer.source.grid.set(quantizer.params)
    return missing
