"""The network that a fine-tuning starts from: first scales from images, or those of PTQ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ompq.artifact import Artifact
from ompq.assignment import Assignment, check_assignment
from ompq.data import collect_images
from ompq.errors import OmpqError
from ompq.graph import NetworkGraph, find_activation_sites, fold_batch_norm, trace_for
from ompq.integer import (
    ConversionSettings,
    IntegerNetwork,
    calibrate,
    convert_to_integers,
    start_learning_steps,
)
from ompq.integer.fake_quantizers import FixedWeightFakeQuantizer
from ompq.quantized import QuantizedNetwork

CALIBRATION_BATCH = 64


def prepare(
    network: nn.Module | NetworkGraph,
    assignment: Assignment,
    images: Tensor | Iterable[Tensor | Sequence[Tensor]],
    settings: ConversionSettings | None = None,
    *,
    source: Artifact | None = None,
) -> IntegerNetwork:
    """Convert a network to integers, and calibrate it, for fine-tuning.

    Args:
        network: Float network, a module or its traced graph; it is copied, never changed.
        assignment: Widths of its groups.
        images: Calibration images, n × channels × height × width, normalised, or batches of them,
            as a `DataLoader` yields them; a module is traced for images of their size.
        settings: Settings of the conversion; None for the defaults.
        source: Network that PTQ quantized to these widths, to start from; None for the float one.

    Returns:
        The network to fine-tune, on the device of the float network.

    Raises:
        OmpqError: `source` is of another network, of other widths, or not from PTQ.
    """
    images = collect_images(images)
    graph, settings = trace_for(network, images), settings or ConversionSettings()
    check_assignment(assignment, graph)
    if source is not None:
        _check_widths(source, assignment)
    # PTQ folds batch norm before it quantizes: its integers are those of the folded weights.
    structure = graph if source is None else fold_batch_norm(graph)
    converted = convert_to_integers(
        structure, assignment.layer_bits(), assignment.layer_act_bits(), settings
    )
    if source is not None:
        adopt_ptq_network(converted, source)
    device = next(converted.module.parameters()).device
    calibrate(converted, images.split(CALIBRATION_BATCH), device)
    if settings.learned:
        start_learning_steps(converted, settings.rule.per_channel)
    return converted


def _check_widths(source: Artifact, assignment: Assignment) -> None:
    """Refuse other widths than those that PTQ found scales for."""
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
                f"`source` holds {what} of {given} bits, the configuration asks for {asked}; "
                "leave the configuration out, or run PTQ with it first"
            )


@torch.no_grad()
def adopt_ptq_network(network: IntegerNetwork, source: Artifact) -> None:
    """Give a network the weights, biases, scales and zero points that PTQ found.

    Scales and zero points stay while the network is trained, unless they are learned; activations
    that PTQ left in float get theirs from calibration.

    Args:
        network: Network of the structure and the widths of `source`, batch norm folded; changed in
            place.
        source: Network that PTQ quantized.

    Raises:
        OmpqError: `source` is not from PTQ, or of another network.
    """
    given = source.network
    if not isinstance(given, QuantizedNetwork):
        raise OmpqError("`source` must be a network from PTQ; go on with one of QAT by `resume`")
    for name, layer in network.layers().items():
        if name not in given.weights:
            raise OmpqError(f"`source` is of another network: it does not hold {name}")
        weight = given.weights[name]
        fake_quantizer = FixedWeightFakeQuantizer(weight.params)
        layer.fake_quantizer = fake_quantizer.to(layer.layer.weight.device)
        layer.layer.weight.copy_(weight.values())
        bias = given.graph.layer_module(name).bias
        if layer.layer.bias is not None and bias is not None:
            layer.layer.bias.copy_(bias)
    quantizers = given.activations()
    by_layer = {
        layer: site
        for site, readers in find_activation_sites(given.graph).items()
        for layer in readers
    }
    for name, layer in network.layers().items():
        quantizer = quantizers.get(by_layer.get(name, ""))
        if quantizer is not None and quantizer.enabled:
            layer.source.fake_quantizer.set(quantizer.params)
