"""An integer network as named tensors and a JSON-ready description, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ompq.errors import OmpqError
from ompq.fixed_point.convert import IntegerNetwork, Scheme, to_integers
from ompq.fixed_point.grids import FixedWeightGrid
from ompq.fixed_point.integer import export_integers
from ompq.graph import NetworkGraph
from ompq.quantizers import QuantParams, dequantize

_INTEGERS = "integers."


@torch.no_grad()
def to_tensors(network: IntegerNetwork) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything of a network but its structure.

    Tensors, by name: `LAYER.weight` (int8, or uint8), `LAYER.weight_scale`,
    `LAYER.weight_zero_point` and `LAYER.bias` (float32, batch norm folded); `PATH.scale` and
    `PATH.zero_point` of every requantization; what no layer holds, in float; and, where the network
    runs on integers alone, what `export_integers` gives, after the prefix `integers.`.
    """
    network.module.eval()
    layers, requantizers = network.layers(), network.requantizers()
    tensors = _other_tensors(network)
    widths = {}
    for name, layer in layers.items():
        whole, params = layer.stored()
        bias = layer.folded()[1]
        kind = torch.uint8 if params.low >= 0 else torch.int8
        tensors[f"{name}.weight"] = whole.to(kind)
        tensors[f"{name}.weight_scale"] = params.scale
        tensors[f"{name}.weight_zero_point"] = params.zero_point
        if bias is not None:
            tensors[f"{name}.bias"] = bias
        widths[name] = {"bits": layer.grid.bits, "low": params.low, "high": params.high}
    for path, requantizer in requantizers.items():
        tensors[f"{path}.scale"] = requantizer.grid.step()
        tensors[f"{path}.zero_point"] = requantizer.grid.zero_point
    runs_on_integers = network.runs_on_integers
    if runs_on_integers:
        numbers = export_integers(network)
        tensors |= {f"{_INTEGERS}{name}": value for name, value in numbers.items()}
    first = next(iter(layers.values()))
    return tensors, {
        "layers": widths,
        "activations": {
            path: {"bits": r.grid.bits, "low": r.grid.low, "high": r.grid.high}
            for path, r in requantizers.items()
        },
        "reads": {name: layer.source.grid.bits for name, layer in layers.items()},
        "bias_bits": first.bias_bits,
        "dyadic": all(r.dyadic for r in requantizers.values()),
        "integers_only": runs_on_integers,
        "float_operations": network.float_operations,
    }


def _other_tensors(network: IntegerNetwork) -> dict[str, Tensor]:
    """State of what is neither layer nor requantization."""
    inside = tuple(f"{path}." for path in [*network.layers(), *network.requantizers()])
    state = network.module.state_dict()
    return {name: value for name, value in state.items() if not name.startswith(inside)}


@torch.no_grad()
def from_tensors(
    folded: NetworkGraph, description: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> IntegerNetwork:
    """The network that `to_tensors` described: the same logits, to the bit.

    Args:
        folded: its structure, batch norm folded.
        description: of `to_tensors`.
        tensors: of `to_tensors`.

    Raises:
        OmpqError: they are of another network.
    """
    described = description["layers"]
    if set(described) != set(folded.layers):
        differing = sorted(set(described) ^ set(folded.layers))
        raise OmpqError(f"the file is of another network: layer {differing[0]} differs")
    scheme = Scheme(bias_bits=description["bias_bits"], dyadic=description["dyadic"])
    bits = {name: entry["bits"] for name, entry in described.items()}
    network = to_integers(folded, bits, description["reads"], scheme)
    requantizers = network.requantizers()
    if set(requantizers) != set(description["activations"]):
        differing = sorted(set(requantizers) ^ set(description["activations"]))
        raise OmpqError(f"the file is of another network: {differing[0]} differs")
    for name, layer in network.layers().items():
        entry = described[name]
        params = _params(tensors, f"{name}.weight_", entry)
        layer.grid = FixedWeightGrid(params)
        layer.layer.weight.copy_(dequantize(_tensor(tensors, f"{name}.weight").int(), params))
        if layer.layer.bias is not None:
            layer.layer.bias.copy_(_tensor(tensors, f"{name}.bias"))
    for path, requantizer in requantizers.items():
        requantizer.grid.set(_params(tensors, f"{path}.", description["activations"][path]))
    for name, value in _other_tensors(network).items():
        value.copy_(_tensor(tensors, name))
    network.module.eval()
    return network


def integers_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `IntegerExecution` needs, from the tensors of a file."""
    return {
        name.removeprefix(_INTEGERS): value
        for name, value in tensors.items()
        if name.startswith(_INTEGERS)
    }


def _params(tensors: Mapping[str, Tensor], prefix: str, entry: Mapping[str, Any]) -> QuantParams:
    scale, zero_point = _tensor(tensors, f"{prefix}scale"), _tensor(tensors, f"{prefix}zero_point")
    return QuantParams(scale, zero_point, entry["low"], entry["high"])


def _tensor(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise OmpqError(f"the file does not hold {name} of the network that it names")
    return tensors[name]
