"""The file of a quantized network: integers, scales, zero points, and all else it computes with.

`quantized.safetensors` holds, for every quantized layer, `LAYER.weight` (uint8 or int8),
`LAYER.weight_scale` (float32) and `LAYER.weight_zero_point` (int32), scalars or one per channel;
for every quantized activation, `activations.NODE.scale` and `activations.NODE.zero_point`; and in
float32 under their own names the biases and what is not quantized. A network of integers (`QAT`)
has instead what `ompq.integer.convert_to_tensors` gives. The metadata, one JSON text under `ompq`,
says which network this is, what its images go through, and the bits of every layer and activation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ompq.assignment import Assignment
from ompq.errors import OmpqError
from ompq.files import load_tensors, save_tensors
from ompq.graph import Exclusions, NetworkGraph, find_activation_sites, fold_batch_norm, trace
from ompq.integer import IntegerNetwork, convert_to_tensors, restore_from_tensors, select_integers
from ompq.preprocess import Preprocess
from ompq.quantized import QUANTIZER_PATH, QuantizedNetwork, QuantizedWeight, insert_quantizers
from ompq.quantizers import QuantParams
from ompq.runtime import versions
from ompq.zoo import Network, rebuild

FORMAT = "ompq-quantized/2"
FILE = "quantized.safetensors"
# What rebuilding a network raises where entries of the file have wrong types or values.
_UNFITTING = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Artifact:
    """A quantized network that was read from its file.

    Attributes:
        network: The network, in evaluation mode on the CPU.
        preprocess: Preprocessing of its images.
        description: Metadata of the file.
        integers: What `ompq.integer.IntegerExecution` computes with; empty where the network does
            not run on integers alone.
    """

    network: QuantizedNetwork | IntegerNetwork
    preprocess: Preprocess
    description: Mapping[str, Any]
    integers: Mapping[str, Tensor]

    @property
    def title(self) -> str:
        """Return the name of the network and its size, for a person to read."""
        name = self.description["architecture"]["name"]
        return f"{name}, {self.description['model_size_mb']:.4f} MB"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of its classes, in the order of its outputs; none where not known."""
        return tuple(self.description.get("class_names", ()))

    @property
    def num_classes(self) -> int | None:
        """Return the number of its classes; None for a module of one's own."""
        return self.description["architecture"].get("num_classes")


def save_quantized(
    path: str | Path,
    quantized: QuantizedNetwork | IntegerNetwork,
    assignment: Assignment,
    *,
    source: Network | None = None,
    preprocess: Preprocess | None = None,
    class_names: Sequence[str] = (),
) -> None:
    """Write a quantized network to a file, all of it or nothing.

    Args:
        path: Path of the file.
        quantized: Quantized network; those of its activation quantizers that are enabled are
            written too.
        assignment: Widths of its groups.
        source: Float network that the quantized one was made from, if it is one of the zoo: the
            file can then be read without it. None for a module of one's own.
        preprocess: Preprocessing of its images; None where they come normalised.
        class_names: Names of its classes, in the order of its outputs, by which labels of other
            images are matched; none where they are not known.

    Raises:
        OmpqError: The file cannot be written.
    """
    if isinstance(quantized, IntegerNetwork):
        tensors, described = convert_to_tensors(quantized)
    else:
        tensors, described = _describe_simulated(quantized)
    description = {
        "format": FORMAT,
        "arithmetic": "integers" if isinstance(quantized, IntegerNetwork) else "float",
        "architecture": _name_own(quantized) if source is None else source.architecture(),
        "input_shape": list(quantized.input_shape),
        "preprocess": asdict(preprocess or _as_they_come(quantized.input_shape)),
        "class_names": list(class_names),
        **described,
        "model_size_mb": assignment.size_mb,
        "bits": list(assignment.widths),
        "act_bits": assignment.act_bits,
        "activation_bits": list(assignment.activations),
        "groups": [list(group.layers) for group in assignment.groups],
        "exclusions": quantized.exclusions.to_json(),
        "weights": "your own module" if source is None else source.source,
        "versions": versions(),
    }
    save_tensors(path, tensors, description)


def _name_own(quantized: QuantizedNetwork | IntegerNetwork) -> dict[str, Any]:
    """Return what stands in the place of an architecture that this toolkit cannot build."""
    return {"name": quantized.module._get_name(), "own": True}


def _as_they_come(input_shape: tuple[int, int, int]) -> Preprocess:
    """Return the preprocessing that leaves images, normalised already, as they are."""
    channels, height, _ = input_shape
    return Preprocess(height, height, mean=(0.0,) * channels, std=(1.0,) * channels)


def _describe_simulated(quantized: QuantizedNetwork) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Collect tensors and description of a network that computes in float on quantized values."""
    tensors = _collect_float_tensors(quantized)
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


def load_quantized(path: str | Path, network: nn.Module | None = None) -> Artifact:
    """Read a quantized network, which gives the logits that it gave when it was saved, to the bit.

    Args:
        path: Path of the file, or of the folder that holds `quantized.safetensors`.
        network: The float network, for a file of a module of one's own; its weights do not matter,
            and it is not changed.

    Raises:
        OmpqError: the file is missing, damaged, of another format, or does not fit the network
            that it names.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    description, tensors = _read(file)
    try:
        return _build(description, tensors, file, network)
    except KeyError as error:
        raise OmpqError(f"{file} is damaged: it does not hold {error}") from error
    except _UNFITTING as error:
        reason = str(error).split("\n")[0]
        raise OmpqError(f"{file} does not fit the network that it names: {reason}") from error


def _build(
    description: dict[str, Any], tensors: dict[str, Tensor], file: Path, module: nn.Module | None
) -> Artifact:
    _check_numbers(tensors, file)
    names = description.get("class_names", [])  # of earlier versions it has none
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise OmpqError(f"{file} is damaged: its class names are no list of texts")
    architecture = description["architecture"]
    if module is None and architecture.get("own"):
        raise OmpqError(
            f"{file} is of a module of your own, {architecture['name']}; read it in Python by "
            "load_quantized(path, network)"
        )
    module = module or rebuild(architecture, tensors, file.parent)
    channels, height, width = description["input_shape"]
    # Files of earlier versions name none.
    exclusions = Exclusions.from_json(description.get("exclusions", {}))
    folded = fold_batch_norm(trace(module, (channels, height, width), exclusions))
    quantized: QuantizedNetwork | IntegerNetwork
    if description.get("arithmetic") == "integers":
        quantized = restore_from_tensors(folded, description, tensors)
    else:
        quantized = QuantizedNetwork(_add_quantizers(folded, description["activations"]))
        _fill(quantized, description, tensors, file)
    settings = description["preprocess"]
    settings |= {key: tuple(settings[key]) for key in ("mean", "std")}
    return Artifact(quantized, Preprocess(**settings), description, select_integers(tensors))


def _collect_float_tensors(quantized: QuantizedNetwork) -> dict[str, Tensor]:
    """Collect what the network's state holds beside quantized weights and quantizers."""
    quantized_names = {f"{layer}.weight" for layer in quantized.weights}
    state = quantized.module.state_dict()
    return {
        name: value
        for name, value in state.items()
        if name not in quantized_names and not name.startswith(f"{QUANTIZER_PATH}.")
    }


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not file.is_file():
        raise OmpqError(f"{file} does not exist; give the output folder of a finished run")
    tensors, description = load_tensors(file)
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise OmpqError(f"{file} is not a quantized network of format {FORMAT}")
    return description, tensors


def _check_numbers(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Refuse values that no quantized network holds: not finite, or no scale or zero point."""
    for name, value in tensors.items():
        bad = value.is_floating_point() and not bool(value.isfinite().all())
        bad |= name.endswith("scale") and not bool((value > 0).all())
        bad |= name.endswith("zero_point") and bool((value.abs() > 2**16).any())
        if bad:
            raise OmpqError(f"{file} is damaged: {name} holds values that cannot be")


def _add_quantizers(graph: NetworkGraph, described: Mapping[str, Any]) -> NetworkGraph:
    """Insert activation quantizers with the widths that the file describes."""
    sites = find_activation_sites(graph)
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
    """Fill weights, float tensors and activation quantizers from the content of the file."""
    # The values of a state dict share memory with the network: copying into them fills it.
    state = quantized.module.state_dict()
    own = _collect_float_tensors(quantized)
    for layer, described in description["layers"].items():
        if f"{layer}.weight" not in own or f"{layer}.weight" not in tensors:
            raise OmpqError(f"{file}: layer {layer} is not in the network that it names")
        params = QuantParams(
            tensors[f"{layer}.weight_scale"],
            tensors[f"{layer}.weight_zero_point"],
            described["low"],
            described["high"],
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
