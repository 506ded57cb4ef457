"""A quantized network beside the device that it is exported for."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ompq.activation_memory import find_peak
from ompq.artifact import Artifact
from ompq.errors import OmpqError
from ompq.integer import IntegerNetwork, collect_reads
from ompq.quantizers import QuantParams
from ompq.target import Target


def check_device(read: Artifact, target: Target) -> None:
    """Refuse a quantized network that a device does not compute, or has no memory for.

    Args:
        read: Quantized network.
        target: The device.

    Raises:
        OmpqError: Names layers with their widths, and what the device has.
    """
    network, description = read.network, read.description
    acts: dict[str, int] = {}
    if isinstance(network, IntegerNetwork):
        modules = {name: layer.layer for name, layer in network.layers().items()}
        bits = {name: layer.fake_quantizer.bits for name, layer in network.layers().items()}
        pairs = zip(description["groups"], description["activation_bits"], strict=True)
        acts = {layer: width for layers, width in pairs for layer in layers}
    else:
        modules = {name: network.graph.layer_module(name) for name in network.weights}
        bits = {name: weight.bits for name, weight in network.weights.items()}
        if target.activation_bits is not None:
            raise OmpqError(
                f"target {target.name} has quantized activations, and this network has floats; "
                "quantize it anew with its activations"
            )
    target.check_widths(modules, bits, acts)
    target.check_size(description["model_size_mb"])
    if read.graph is not None and target.act_memory_kb is not None:
        target.check_memory(find_peak(read.graph, collect_reads(description)))
    for layer, params in _list_params(read):
        if target.symmetric and _has_zero_point(params):
            raise OmpqError(
                f"target {target.name} has weights without zero point alone, and {layer} has one; "
                "quantize the network anew for this target"
            )
        if target.per_channel is False and params.scale.numel() > 1:
            raise OmpqError(
                f"target {target.name} has one weight scale per layer, and {layer} has "
                f"{params.scale.numel()}; quantize the network anew for this target"
            )


def _list_params(read: Artifact) -> Iterator[tuple[str, QuantParams]]:
    """Yield every quantized layer with scale and zero point of its weight."""
    network = read.network
    if isinstance(network, IntegerNetwork):
        for name, layer in network.layers().items():
            yield name, layer.fake_quantizer.compute_params(layer.layer.weight)
    else:
        for name, weight in network.weights.items():
            yield name, weight.params


def _has_zero_point(params: QuantParams) -> bool:
    """Tell whether zero is elsewhere than in the middle of the integers, in some channel."""
    middle = (params.low + params.high + 1) // 2
    points = torch.as_tensor(params.zero_point)
    # Integers of −7 to 7 have their middle at 0, as those of −8 to 7 have.
    return bool((points != middle).any())
