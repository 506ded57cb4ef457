"""Weights, biases and scales of one quantized network, taken over by a network of integers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from ompq.errors import OmpqError
from ompq.integer import IntegerNetwork
from ompq.integer.fake_quantizers import FixedWeightFakeQuantizer
from ompq.integer.requantization import Requantizer
from ompq.integer.serialization import collect_other_tensors
from ompq.quantized import QuantizedNetwork
from ompq.quantizers import QuantParams, dequantize


@torch.no_grad()
def adopt(network: IntegerNetwork, given: QuantizedNetwork | IntegerNetwork) -> None:
    """Give a network the weights, biases, scales and zero points of another one.

    Scales and zero points stay while the network is trained, unless they are learned; activations
    that the other leaves in float get theirs from calibration.

    Args:
        network: Network of the other's structure and widths, batch norm folded; changed in place.
        given: Quantized network.

    Raises:
        OmpqError: `given` is of another network.
    """
    weights = _collect_weights(given)
    shared: dict[int, FixedWeightFakeQuantizer] = {}
    for name, layer in network.layers().items():
        if name not in weights:
            raise OmpqError(f"the given network is another one: it does not hold {name}")
        (integers, params), own = weights[name], layer.layer.weight
        # Layers that share a weight share its scale: that of the first of them.
        if id(own) not in shared:
            shared[id(own)] = FixedWeightFakeQuantizer(params).to(own.device)
            own.copy_(dequantize(integers.int(), params))
        layer.fake_quantizer = shared[id(own)]
        bias = _find_bias(given, name)
        if layer.layer.bias is not None and bias is not None:
            layer.layer.bias.copy_(bias)
    if isinstance(given, IntegerNetwork):
        # Norms that were made even for the layers behind them are no longer the float network's.
        others = collect_other_tensors(given)
        for name, value in collect_other_tensors(network).items():
            if name in others and others[name].shape == value.shape:
                value.copy_(others[name])
    _adopt_activations(network, given)


def _collect_weights(
    given: QuantizedNetwork | IntegerNetwork,
) -> dict[str, tuple[Tensor, QuantParams]]:
    """Return layer → integers of its weight, and their scale, zero point and range."""
    if isinstance(given, QuantizedNetwork):
        return {name: (weight.integers, weight.params) for name, weight in given.weights.items()}
    return {name: layer.quantize_weight() for name, layer in given.layers().items()}


def _find_bias(given: QuantizedNetwork | IntegerNetwork, name: str) -> Tensor | None:
    if isinstance(given, QuantizedNetwork):
        bias = given.graph.layer_module(name).bias
        return bias if isinstance(bias, Tensor) else None
    return given.layers()[name].fold()[1]


def _adopt_activations(network: IntegerNetwork, given: QuantizedNetwork | IntegerNetwork) -> None:
    """Set the scales of activations: those of the same place, else those that a layer reads.

    Values that one layer reads, at one call or another, have one scale: it covers them all.
    """
    by_path, by_layer = _collect_activations(given)
    places: dict[int, list[Requantizer]] = defaultdict(list)
    found: dict[Requantizer, QuantParams] = {}
    for requantizer in network.requantizers().values():
        places[id(requantizer.fake_quantizer)].append(requantizer)
    for name, layer in network.layers().items():
        if name in by_layer and layer.has_source:
            found[layer.source] = by_layer[name]
    for path, requantizer in network.requantizers().items():
        if path in by_path:
            found[requantizer] = by_path[path]
    for sharing in places.values():
        known = [found[requantizer] for requantizer in sharing if requantizer in found]
        if known:
            sharing[0].fake_quantizer.set(_cover(known))


def _cover(params: Sequence[QuantParams]) -> QuantParams:
    """Return scale and zero point, per tensor, of a range that covers those of all given.

    >>> small = QuantParams(torch.tensor(0.5), torch.tensor(0, dtype=torch.int32), 0, 15)
    >>> signed = QuantParams(torch.tensor(0.5), torch.tensor(8, dtype=torch.int32), 0, 15)
    >>> _cover([small, signed])  # from -4 to 7.5
    QuantParams(scale=tensor(0.7667), zero_point=tensor(5, dtype=torch.int32), low=0, high=15)
    """
    starts, ends = zip(*(_find_range(each) for each in params), strict=True)
    start, end = min(starts), max(ends)
    for each, reaches in zip(params, zip(starts, ends, strict=True), strict=True):
        if reaches == (start, end):
            return each
    low, high = params[0].low, params[0].high
    scale = torch.tensor((end - start) / (high - low)).to(params[0].scale)
    zero_point = torch.round(low - start / scale).to(params[0].zero_point)
    return QuantParams(scale, zero_point, low, high)


def _find_range(params: QuantParams) -> tuple[float, float]:
    """Return the least and the largest value that integers stand for."""
    scale, zero_point = float(params.scale), int(params.zero_point)
    return (params.low - zero_point) * scale, (params.high - zero_point) * scale


def _collect_activations(
    given: QuantizedNetwork | IntegerNetwork,
) -> tuple[dict[str, QuantParams], dict[str, QuantParams]]:
    """Return path of a requantizer → its scale, and layer → scale of what it reads."""
    if isinstance(given, QuantizedNetwork):
        found = {
            path: quantizer.params
            for path, quantizer in given.activations().items()
            if quantizer.enabled
        }
        # Networks of earlier files have their quantizers elsewhere, but layers read them too.
        read = {layer: path for path, layers in given.readers().items() for layer in layers}
        return found, {layer: found[path] for layer, path in read.items() if path in found}
    requantizers, layers = given.requantizers().items(), given.layers().items()
    return {path: _read_params(requantizer) for path, requantizer in requantizers}, {
        name: _read_params(layer.source) for name, layer in layers if layer.has_source
    }


def _read_params(requantizer: Requantizer) -> QuantParams:
    held = requantizer.fake_quantizer
    return QuantParams(held.get_scale().clone(), held.zero_point.clone(), held.low, held.high)
