"""The file of a quantized network: its integers, their grids, and all else that it computes with.

`quantized.safetensors` holds, for every quantized layer, `LAYER.weight` (uint8 or int8),
`LAYER.weight_scale` (float32) and `LAYER.weight_zero_point` (int32), scalars or one per channel;
for every quantized activation, `activations.NODE.scale` and `activations.NODE.zero_point`; and in
float32 under their own names the biases and what is not quantized. A network of integers (`QAT`)
has instead what `ompq.fixed_point.to_tensors` tells. The metadata, one JSON text under `ompq`, says
which network this is, what its images go through, and the bits of every layer and activation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ompq.bitconfig import Assignment
from ompq.errors import OmpqError
from ompq.files import load_tensors, save_tensors
from ompq.fixed_point import IntegerNetwork, from_tensors, integers_of, to_tensors
from ompq.graph import NetworkGraph, activation_sites, fold_batch_norm, trace
from ompq.preprocess import Preprocess
from ompq.quantized import ACTIVATIONS, QuantizedNetwork, QuantizedWeight, insert_quantizers
from ompq.quantizers import QuantParams
from ompq.runtime import versions
from ompq.zoo import Network, rebuild

FORMAT = "ompq-quantized/2"
FILE = "quantized.safetensors"


@dataclass(frozen=True)
class Artifact:
    """A quantized network read from its file; `description` is the file's metadata.

    `integers` holds what `ompq.fixed_point.IntegerExecution` needs, where the network runs on
    integers alone.
    """

    network: QuantizedNetwork | IntegerNetwork
    preprocess: Preprocess
    description: Mapping[str, Any]
    integers: Mapping[str, Tensor]

    @property
    def title(self) -> str:
        """Name of the network and its size, for a person to read."""
        name = self.description["architecture"]["name"]
        return f"{name}, {self.description['model_size_mb']:.4f} MB"


def save(
    path: str | Path,
    quantized: QuantizedNetwork | IntegerNetwork,
    source: Network,
    preprocess: Preprocess,
    assignment: Assignment,
) -> None:
    """Write a quantized network.

    Args:
        path: of the file.
        quantized: the network; enabled activation quantizers are part of it.
        source: the float network that it was made from.
        preprocess: what its images go through.
        assignment: the widths of its groups.
    """
    if isinstance(quantized, IntegerNetwork):
        tensors, described = to_tensors(quantized)
    else:
        tensors, described = _simulated(quantized)
    description = {
        "format": FORMAT,
        "arithmetic": "integers" if isinstance(quantized, IntegerNetwork) else "float",
        "architecture": source.architecture(),
        "input_shape": list(quantized.input_shape),
        "preprocess": asdict(preprocess),
        **described,
        "model_size_mb": assignment.size_mb,
        "bits": list(assignment.widths),
        "act_bits": assignment.act_bits,
        "activation_bits": list(assignment.activations),
        "groups": [list(group.layers) for group in assignment.groups],
        "weights": source.source,
        "versions": versions(),
    }
    save_tensors(path, tensors, description)


def _simulated(quantized: QuantizedNetwork) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a network that computes in float on quantized values."""
    tensors = _float_tensors(quantized)
    for layer, weight in quantized.weights.items():
        tensors[f"{layer}.weight"] = weight.integers
        tensors[f"{layer}.weight_scale"] = weight.params.scale
        tensors[f"{layer}.weight_zero_point"] = weight.params.zero_point
    activations = quantized.activations()
    for node, quantizer in activations.items():
        if quantizer.enabled:
            tensors[f"activations.{node}.scale"] = quantizer.params.scale
            tensors[f"activations.{node}.zero_point"] = quantizer.params.zero_point
    return tensors, {
        "layers": {
            layer: {"bits": weight.bits, "low": weight.params.low, "high": weight.params.high}
            for layer, weight in quantized.weights.items()
        },
        "activations": {
            node: {"bits": quantizer.bits, "enabled": quantizer.enabled}
            for node, quantizer in activations.items()
        },
    }


def load(path: str | Path) -> Artifact:
    """Read a quantized network: the same logits as when it was saved.

    Args:
        path: the file, or the folder that holds `quantized.safetensors`.

    Raises:
        OmpqError: missing, damaged, of another format, or not fitting the network that it names.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    description, tensors = _read(file)
    try:
        return _build(description, tensors, file)
    except KeyError as error:
        raise OmpqError(f"{file} is damaged: it does not hold {error}") from error
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise OmpqError(f"{file} does not fit the network that it names: {reason}") from error


def _build(description: dict[str, Any], tensors: dict[str, Tensor], file: Path) -> Artifact:
    _check_numbers(tensors, file)
    module = rebuild(description["architecture"], tensors)
    channels, height, width = description["input_shape"]
    folded = fold_batch_norm(trace(module, (channels, height, width)))
    quantized: QuantizedNetwork | IntegerNetwork
    if description.get("arithmetic") == "integers":
        quantized = from_tensors(folded, description, tensors)
    else:
        quantized = QuantizedNetwork(_with_quantizers(folded, description["activations"]))
        _fill(quantized, description, tensors, file)
    settings = description["preprocess"]
    settings |= {key: tuple(settings[key]) for key in ("mean", "std")}
    return Artifact(quantized, Preprocess(**settings), description, integers_of(tensors))


def _float_tensors(quantized: QuantizedNetwork) -> dict[str, Tensor]:
    """Everything in the network's state that no integers stand for."""
    quantized_names = {f"{layer}.weight" for layer in quantized.weights}
    state = quantized.module.state_dict()
    return {
        name: value
        for name, value in state.items()
        if name not in quantized_names and not name.startswith(f"{ACTIVATIONS}.")
    }


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not file.is_file():
        raise OmpqError(f"{file} does not exist; give the output folder of a finished run")
    tensors, description = load_tensors(file)
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise OmpqError(f"{file} is not a quantized network of format {FORMAT}")
    return description, tensors


def _check_numbers(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Refuse numbers that no quantized network has."""
    for name, value in tensors.items():
        bad = value.is_floating_point() and not bool(value.isfinite().all())
        bad |= name.endswith("scale") and not bool((value > 0).all())
        bad |= name.endswith("zero_point") and bool((value.abs() > 2**16).any())
        if bad:
            raise OmpqError(f"{file} is damaged: {name} holds values that cannot be")


def _with_quantizers(graph: NetworkGraph, described: Mapping[str, Any]) -> NetworkGraph:
    """Activation quantizers with the widths of the file."""
    sites = activation_sites(graph)
    if set(sites) != set(described):
        differing = sorted(set(sites) ^ set(described))
        raise OmpqError(f"the file is of another network: activation {differing[0]} differs")
    return insert_quantizers(graph, {site: entry["bits"] for site, entry in described.items()})


@torch.no_grad()
def _fill(
    quantized: QuantizedNetwork,
    description: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    file: Path,
) -> None:
    state = quantized.module.state_dict()
    own = _float_tensors(quantized)
    for layer, grid in description["layers"].items():
        if f"{layer}.weight" not in own or f"{layer}.weight" not in tensors:
            raise OmpqError(f"{file}: layer {layer} is not in the network that it names")
        params = QuantParams(
            tensors[f"{layer}.weight_scale"],
            tensors[f"{layer}.weight_zero_point"],
            grid["low"],
            grid["high"],
        )
        weight = QuantizedWeight(tensors[f"{layer}.weight"], params)
        quantized.set_weight(layer, weight)
        del own[f"{layer}.weight"]
    for name in own:
        if name not in tensors or tensors[name].shape != state[name].shape:
            raise OmpqError(f"{file} does not hold {name} of the network that it names")
        state[name].copy_(tensors[name])
    for node, quantizer in quantized.activations().items():
        quantizer.enabled = description["activations"][node]["enabled"]
        if quantizer.enabled:
            scale = tensors[f"activations.{node}.scale"]
            zero_point = tensors[f"activations.{node}.zero_point"]
            quantizer.set(QuantParams(scale, zero_point, quantizer.low, quantizer.high))
