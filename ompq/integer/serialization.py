"""An integer network as named tensors and a JSON-ready description, and back."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ompq.errors import OmpqError
from ompq.graph import NetworkGraph
from ompq.integer.convert import convert_to_integers
from ompq.integer.fake_quantizers import ActivationFakeQuantizer, FixedWeightFakeQuantizer
from ompq.integer.layers import QuantizedLayer
from ompq.integer.network import ConversionSettings, IntegerNetwork, describe_operations
from ompq.integer.proof import check_integers
from ompq.quantizers import QuantParams, dequantize

# Files of earlier versions hold what follows from scales and biases as well.
_INTEGERS = "integers."


@torch.no_grad()
def convert_to_tensors(network: IntegerNetwork) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return everything of a network but its structure, which is put into evaluation mode.

    Args:
        network: Network of integers.

    Returns:
        Tensors by name: `LAYER.weight` (int8, or uint8), `LAYER.weight_scale`,
        `LAYER.weight_zero_point` and `LAYER.bias` (batch norm folded; int32 at the scale of the
        sums, or float32 where biases are in float); `PATH.scale` and `PATH.zero_point` of every
        requantizer; and what no layer holds, in float. And a JSON-ready description: the widths and
        ranges of the integers, and what stayed in float. Whether the network runs on integers alone
        is found by running them.
    """
    network.float_operations |= check_integers(network)
    layers, requantizers = network.layers(), network.requantizers()
    tensors = collect_other_tensors(network)
    widths = {}
    for name, layer in layers.items():
        whole, params = layer.quantize_weight()
        bias = layer.compute_integers().bias
        bias = layer.fold()[1] if bias is None else bias.int()
        kind = torch.uint8 if params.low >= 0 else torch.int8
        tensors[f"{name}.weight"] = whole.to(kind)
        tensors[f"{name}.weight_scale"] = params.scale
        tensors[f"{name}.weight_zero_point"] = params.zero_point
        if bias is not None:
            tensors[f"{name}.bias"] = bias
        widths[name] = {"bits": layer.fake_quantizer.bits, "low": params.low, "high": params.high}
    for path, requantizer in requantizers.items():
        tensors[f"{path}.scale"] = requantizer.fake_quantizer.get_scale()
        tensors[f"{path}.zero_point"] = requantizer.fake_quantizer.zero_point
    first = next(iter(layers.values()))
    return tensors, {
        "layers": widths,
        "activations": {
            path: _describe(requantizer.fake_quantizer)
            for path, requantizer in requantizers.items()
        },
        "reads": {name: layer.source.fake_quantizer.bits for name, layer in layers.items()},
        "product_reads": network.product_bits,
        "merged": list(network.merged),
        "bias_bits": first.bias_bits,
        "dyadic": all(r.dyadic for r in requantizers.values()),
        "quantize_sums": network.quantize_sums,
        "integers_only": network.runs_on_integers,
        "float_operations": network.float_operations,
        "in_float": describe_operations(network.module, network.float_operations),
        "left_in_float": sorted(network.left_in_float),
        "operations": list(network.operations()),
    }


def collect_reads(description: Mapping[str, Any]) -> dict[str, int]:
    """Return layer, or node of a product → width of what it reads, of a network's description."""
    # In files of earlier versions all products read 8 bits, and none is named.
    return {**description["reads"], **description.get("product_reads", {})}


def _describe(fake_quantizer: ActivationFakeQuantizer) -> dict[str, int]:
    """Return width and range of an activation's integers."""
    bits, low, high = fake_quantizer.bits, fake_quantizer.low, fake_quantizer.high
    return {"bits": bits, "low": low, "high": high}


def collect_other_tensors(network: IntegerNetwork) -> dict[str, Tensor]:
    """Return the state of what the network reads that is neither layer nor requantizer."""
    nodes = network.module.graph.nodes
    read = {str(node.target) for node in nodes if node.op in ("call_module", "get_attr")}
    # Batch norms that are part of a layer may still stand where they were.
    read -= network.layers().keys() | network.requantizers().keys()
    state = network.module.state_dict()
    return {name: value for name, value in state.items() if not read.isdisjoint(_find_paths(name))}


def _find_paths(name: str) -> list[str]:
    """Return a tensor's name and the paths of all modules that it is in.

    >>> _find_paths("block.norm.weight")
    ['block', 'block.norm', 'block.norm.weight']
    """
    return list(accumulate(name.split("."), lambda path, step: f"{path}.{step}"))


@torch.no_grad()
def restore_from_tensors(
    folded: NetworkGraph, description: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> IntegerNetwork:
    """Build the network that `convert_to_tensors` described, with its logits to the bit.

    Args:
        folded: Float network of its structure, batch norm folded.
        description: Description from `convert_to_tensors`.
        tensors: Tensors from `convert_to_tensors`.

    Raises:
        OmpqError: The description or the tensors are of another network.
    """
    described = description["layers"]
    if set(described) != set(folded.layers):
        differing = sorted(set(described) ^ set(folded.layers))
        raise OmpqError(f"the file is of another network: layer {differing[0]} differs")
    settings = ConversionSettings(
        bias_bits=description["bias_bits"],
        dyadic=description["dyadic"],
        # Files of earlier versions do not tell it.
        quantize_sums=description.get("quantize_sums", False),
    )
    bits = {name: entry["bits"] for name, entry in described.items()}
    left = set(description.get("left_in_float", ()))
    if "operations" not in description:
        # Of earlier versions, which knew fewer integer forms: what was in float stays so.
        left |= description["float_operations"].keys()
    # Earlier versions merged nothing.
    merged = description.get("merged", ())
    reads = collect_reads(description)
    network = convert_to_integers(folded, bits, reads, settings, left, merged)
    requantizers, operations = network.requantizers(), network.operations()
    expected = {*description["activations"], *description.get("operations", ())}
    differing = sorted({*requantizers, *operations} ^ expected)
    if differing:
        raise OmpqError(f"the file is of another network: {differing[0]} differs")
    for path, requantizer in requantizers.items():
        entry = description["activations"][path]
        requantizer.fake_quantizer.set(_read_params(tensors, f"{path}.", entry))
    for name, layer in network.layers().items():
        params = _read_params(tensors, f"{name}.weight_", described[name])
        weight = _read_tensor(tensors, f"{name}.weight", layer.layer.weight).int()
        layer.fake_quantizer, layer.raises_scales = FixedWeightFakeQuantizer(params), False
        layer.layer.weight.copy_(dequantize(weight, params))
        if layer.layer.bias is not None:
            _adopt_bias(layer, _read_tensor(tensors, f"{name}.bias", layer.layer.bias))
    for name, value in collect_other_tensors(network).items():
        value.copy_(_read_tensor(tensors, name, value))
    network.module.eval()
    # What a check had shown when the file was written.
    network.float_operations = {**description["float_operations"], **network.float_operations}
    return network


def select_integers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what `IntegerExecution` needs of the tensors of a file.

    >>> select_integers({"fc.bias": torch.tensor(0.5), "integers.fc.bias": torch.tensor(3)})
    {'fc.bias': tensor(3)}
    """
    return {
        name.removeprefix(_INTEGERS): value
        for name, value in tensors.items()
        if name.startswith(_INTEGERS)
    }


def _adopt_bias(layer: QuantizedLayer, bias: Tensor) -> None:
    """Give a layer, whose scales are known, a bias in integers or in float."""
    if not bias.is_floating_point():
        layer.hold_bias(bias)
    elif layer.layer.bias is not None:
        layer.layer.bias.copy_(bias)


def _read_params(
    tensors: Mapping[str, Tensor], prefix: str, entry: Mapping[str, Any]
) -> QuantParams:
    scale = _read_tensor(tensors, f"{prefix}scale")
    zero_point = _read_tensor(tensors, f"{prefix}zero_point")
    return QuantParams(scale, zero_point, entry["low"], entry["high"])


def _read_tensor(tensors: Mapping[str, Tensor], name: str, like: Tensor | None = None) -> Tensor:
    """Return a tensor by its name, of the shape of another where one is given."""
    if name not in tensors:
        raise OmpqError(f"the file does not hold {name} of the network that it names")
    if like is not None and tensors[name].shape != like.shape:
        raise OmpqError(
            f"the file is of another network: {name} has the shape {tuple(tensors[name].shape)}, "
            f"not {tuple(like.shape)}"
        )
    return tensors[name]
