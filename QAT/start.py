"""Where a fine-tuning starts: first ranges from images, or the grids of a finished PTQ."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ompq.artifact import Artifact
from ompq.bitconfig import Assignment
from ompq.errors import OmpqError
from ompq.fixed_point import IntegerNetwork, Scheme, to_integers
from ompq.fixed_point.grids import (
    FixedWeightGrid,
    LearnedActivationGrid,
    LearnedWeightGrid,
    learned_grid,
)
from ompq.graph import NetworkGraph, activation_sites, fold_batch_norm
from ompq.quantized import QuantizedNetwork

CALIBRATION_BATCH = 64


def begin(
    graph: NetworkGraph,
    assignment: Assignment,
    scheme: Scheme,
    images: Tensor,
    source: Artifact | None = None,
) -> IntegerNetwork:
    """The network to fine-tune, on the device of `graph`, with its first grids.

    Args:
        graph: the float network.
        assignment: the widths of its groups.
        scheme: how it is rewritten.
        images: n × channels × height × width, normalised; they give the first ranges.
        source: a network that PTQ quantized to the same widths, to start from.

    Raises:
        OmpqError: `source` is of another network, of other widths, or not of PTQ.
    """
    if source is not None:
        _check_widths(source, assignment)
    structure = graph if source is None else fold_batch_norm(graph)
    network = to_integers(structure, assignment.layer_bits(), assignment.layer_act_bits(), scheme)
    if source is not None:
        take_over(network, source)
    device = next(network.module.parameters()).device
    calibrate(network, images.split(CALIBRATION_BATCH), device)
    if scheme.learned:
        learn_steps(network, scheme.rule.per_channel)
    return network


def _check_widths(source: Artifact, assignment: Assignment) -> None:
    """Grids that were decided before cannot change their width."""
    found: list[tuple[str, list[int], list[int]]] = [
        ("weights", source.description["bits"], list(assignment.widths))
    ]
    if isinstance(source.network, QuantizedNetwork) and any(
        quantizer.enabled for quantizer in source.network.activations().values()
    ):
        activations = source.description["activation_bits"]
        found.append(("activations", activations, list(assignment.activations)))
    for what, given, asked in found:
        if given != asked:
            raise OmpqError(
                f"--init_from holds {what} of {given} bits, the configuration asks for {asked}; "
                "leave the configuration out, or run PTQ with it first"
            )


@torch.no_grad()
def calibrate(network: IntegerNetwork, batches: Iterable[Tensor], device: torch.device) -> None:
    """Give activations their first ranges from images; weights and batch norms stay as they are."""
    layers = list(network.layers().values())
    frozen = [layer.freeze_norm for layer in layers]
    network.module.eval()
    for layer in layers:
        layer.freeze_norm = True
        layer.train()
    for requantizer in network.requantizers().values():
        requantizer.train()
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
    for requantizer in network.requantizers().values():
        if isinstance(requantizer.grid, LearnedActivationGrid):
            requantizer.grid.observing = False


@torch.no_grad()
def take_over(network: IntegerNetwork, source: Artifact) -> None:
    """Weights, biases and grids of a network that `PTQ` quantized.

    The network must be of the same structure and widths, batch norm folded. Grids stay while
    it is trained; activations that PTQ left in float get theirs from images.

    Args:
        network: takes them over.
        source: gives them.

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
        layer.grid = FixedWeightGrid(weight.params).to(layer.layer.weight.device)
        layer.layer.weight.copy_(weight.values())
        bias = given.graph.layer_module(name).bias
        if layer.layer.bias is not None and bias is not None:
            layer.layer.bias.copy_(bias)
    quantizers = given.activations()
    by_layer = {
        layer: site for site, readers in activation_sites(given.graph).items() for layer in readers
    }
    for name, layer in network.layers().items():
        quantizer = quantizers.get(by_layer.get(name, ""))
        if quantizer is not None and quantizer.enabled:
            layer.source.grid.set(quantizer.params)
