"""The file of a quantized network: integers, scales, zero points, and all else it computes with.

`quantized.safetensors` is as large as its network was promised to be, but for the scale and the
bias of each channel: weights take as many bits as they are wide (`ompq.packing` tells the layout),
and what no layer holds stands in float32 under its own name. The metadata, one JSON text under
`ompq`, says which network this is, what its images go through, and the bits of every layer and
activation; it has a checksum of the whole file. What integer arithmetic computes with beyond that
(`Artifact.integers`) follows from scales and biases on every machine alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ompq.assignment import Assignment
from ompq.errors import UNSUITED_ERRORS, OmpqError
from ompq.graph import Exclusions, NetworkGraph, find_activation_sites, fold_batch_norm, trace
from ompq.integer import (
    IntegerNetwork,
    convert_to_tensors,
    export_integers,
    restore_from_tensors,
    select_integers,
)
from ompq.packing import find_activation_prefix, pack, unpack
from ompq.preprocess import Preprocess
from ompq.probe import check_probe, probe
from ompq.quantized import QUANTIZER_PATH, QuantizedNetwork, QuantizedWeight, insert_quantizers
from ompq.quantizers import QuantParams
from ompq.runtime import versions
from ompq.sealed_file import CHECKSUM, FileContent, is_sealed, load_content, save_sealed
from ompq.zoo import Network, rebuild, relocate

_KIND, _VERSION = "ompq-quantized/", 3
FORMAT = f"{_KIND}{_VERSION}"
# One byte for each weight, and no checksum: still read.
_UNPACKED_VERSION = 2
FILE = "quantized.safetensors"
# An architecture has one of these where the code of the network is a user's, which may change.
_OF_A_USER = frozenset(("own", "file"))
# Width of the widest integers that a zero point belongs to: those of sums.
_MOST_BITS = 24
# What a file tells of its network that the network itself does not.
_ABOUT = (
    "architecture preprocess class_names model_size_mb bits act_bits activation_bits groups weights"
).split()


@dataclass(frozen=True)
class Artifact:
    """A quantized network that was read from its file.

    Attributes:
        network: The network, in evaluation mode on the CPU.
        preprocess: Preprocessing of its images.
        description: Metadata of the file.
        integers: What `ompq.integer.IntegerExecution` computes with; empty where the network does
            not run on integers alone.
        graph: Structure of the float network that a network of integers was converted from, batch
            norm folded, whose values do not matter; None where activations are in float.
    """

    network: QuantizedNetwork | IntegerNetwork
    preprocess: Preprocess
    description: Mapping[str, Any]
    integers: Mapping[str, Tensor]
    graph: NetworkGraph | None = None

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
    entropy: bool = False,
) -> None:
    """Write a quantized network to a file, all of it or nothing.

    Args:
        path: Path of the file.
        quantized: Quantized network; its integers are written where it has some, else those of
            its activation quantizers that are enabled.
        assignment: Widths of its groups.
        source: Float network that the quantized one was made from, if it is one of the zoo: the
            file can then be read without it. None for a module of one's own.
        preprocess: Preprocessing of its images; None where they come normalised.
        class_names: Names of its classes, in the order of its outputs, by which labels of other
            images are matched; none where they are not known.
        entropy: Whether weights are coded by their frequencies, where that is smaller still.

    Raises:
        OmpqError: The file cannot be written.
    """
    if isinstance(quantized, QuantizedNetwork):
        quantized = quantized.deployed
    about = {
        "architecture": _name_own(quantized) if source is None else source.architecture(),
        "preprocess": asdict(preprocess or _as_they_come(quantized.input_shape)),
        "class_names": list(class_names),
        "model_size_mb": assignment.size_mb,
        "bits": list(assignment.widths),
        "act_bits": assignment.act_bits,
        "activation_bits": list(assignment.activations),
        "groups": [list(group.layers) for group in assignment.groups],
        "weights": "your own module" if source is None else source.source,
    }
    _write(path, quantized, about, entropy)


def write_artifact(path: str | Path, read: Artifact, *, entropy: bool = False) -> None:
    """Write a network that was read from a file to another one, in the newest format.

    Args:
        path: Path of the file.
        read: Quantized network.
        entropy: Whether weights are coded by their frequencies, where that is smaller still.

    Raises:
        OmpqError: The file cannot be written.
    """
    about = {key: read.description[key] for key in _ABOUT if key in read.description}
    _write(path, read.network, about, entropy)


def _write(
    path: str | Path,
    quantized: QuantizedNetwork | IntegerNetwork,
    about: Mapping[str, Any],
    entropy: bool,
) -> None:
    if isinstance(quantized, IntegerNetwork):
        arithmetic, (tensors, described) = "integers", convert_to_tensors(quantized)
    else:
        arithmetic, (tensors, described) = "float", _describe_simulated(quantized)
    description = {
        "format": FORMAT,
        "arithmetic": arithmetic,
        "input_shape": list(quantized.input_shape),
        **about,
        **described,
        "exclusions": quantized.exclusions.to_json(),
        "versions": versions(),
    }
    if about["architecture"].keys() & _OF_A_USER:
        description["probe"] = probe(quantized)
    packed, description = pack(tensors, description, entropy=entropy)
    save_sealed(path, packed, description)


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
            that it names, whose code may have been changed since.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise OmpqError(f"{file} does not exist; give the output folder of a finished run")
    found = load_content(file)
    version = _find_version(found, file)
    try:
        if version == _UNPACKED_VERSION:
            return _build(found.description, found.tensors, file, network)
        tensors, description = unpack(found.tensors, found.description)
        return _build(description, tensors, file, network)
    except KeyError as error:
        raise OmpqError(f"{file} is damaged: it does not hold {error}") from error
    except UNSUITED_ERRORS as error:
        reason = str(error).split("\n")[0]
        raise OmpqError(f"{file} does not fit the network that it names: {reason}") from error


def _build(
    description: dict[str, Any], tensors: dict[str, Tensor], file: Path, module: nn.Module | None
) -> Artifact:
    _check_numbers(tensors, description, file)
    names = description.get("class_names", [])  # of earlier versions it has none
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise OmpqError(f"{file} is damaged: its class names are no list of texts")
    architecture = description["architecture"]
    if module is None and architecture.get("own"):
        raise OmpqError(
            f"{file} is of a module of your own, {architecture['name']}; read it in Python by "
            "load_quantized(path, network)"
        )
    if module is None:
        # Where a user's file is found now is what a copy of this file in another folder is to tell.
        description["architecture"] = architecture = relocate(architecture, file.parent)
        module = rebuild(architecture, tensors, file.parent)
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
    # Files of earlier versions hold none.
    check_probe(quantized, description.get("probe", ()), f"{file}: {architecture['name']}")
    settings = description["preprocess"]
    settings |= {key: tuple(settings[key]) for key in ("mean", "std")}
    integers = _find_integers(quantized, description, tensors)
    graph = folded if isinstance(quantized, IntegerNetwork) else None
    return Artifact(quantized, Preprocess(**settings), description, integers, graph)


def _find_integers(
    quantized: QuantizedNetwork | IntegerNetwork,
    description: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> Mapping[str, Tensor]:
    """Return what integer arithmetic computes with, where that is all that the network needs."""
    if description["format"] != FORMAT:
        return select_integers(tensors)
    if isinstance(quantized, IntegerNetwork) and quantized.runs_on_integers:
        return export_integers(quantized)
    return {}


def _collect_float_tensors(quantized: QuantizedNetwork) -> dict[str, Tensor]:
    """Collect what the network's state holds beside quantized weights and quantizers."""
    quantized_names = {f"{layer}.weight" for layer in quantized.weights}
    state = quantized.module.state_dict()
    return {
        name: value
        for name, value in state.items()
        if name not in quantized_names and not name.startswith(f"{QUANTIZER_PATH}.")
    }


def _find_version(found: FileContent, file: Path) -> int:
    """Return the version of a file's format, one that is known here, once its bytes are verified.

    A changed bit may make one version another; the checksum tells.
    """
    text = str(found.description.get("format")) if isinstance(found.description, dict) else ""
    number = re.fullmatch(rf"{_KIND}(\d{{1,6}})", text)
    version = int(number[1]) if number else 0
    marked = CHECKSUM.encode() in found.header
    if version > _VERSION:
        ours = found.content.replace(text.encode(), FORMAT.encode(), 1)
        if not is_sealed(ours):
            raise OmpqError(f"{file} is of a newer format, {text}; update the toolkit")
    if version == _VERSION and is_sealed(found.content):
        return version
    if version == _UNPACKED_VERSION and not marked:
        return version
    if marked or version >= _VERSION:
        raise OmpqError(f"{file} is damaged: its checksum is wrong; write it again")
    raise OmpqError(f"{file} is not a quantized network of format {FORMAT}")


def _check_numbers(
    tensors: Mapping[str, Tensor], description: Mapping[str, Any], file: Path
) -> None:
    """Refuse values that no quantized network holds: NaN, or no scale or zero point.

    Infinite values are those of masks, and no layer or quantizer has any.
    """
    prefix = find_activation_prefix(description)
    quantizers = [f"{layer}.weight_" for layer in description["layers"]]
    quantizers += [f"{prefix}{path}." for path in description["activations"]]
    scales = {f"{quantizer}scale" for quantizer in quantizers}
    zero_points = {f"{quantizer}zero_point" for quantizer in quantizers}
    checked = (*quantizers, *(f"{layer}." for layer in description["layers"]))
    for name, value in tensors.items():
        bad = bool(value.isnan().any())
        bad |= name.startswith(checked) and bool(value.isinf().any())
        bad |= name in scales and not bool((value > 0).all())
        bad |= name in zero_points and bool((value.abs() > 2**_MOST_BITS).any())
        if bad:
            raise OmpqError(f"{file} is damaged: {name} holds values that cannot be")


def _add_quantizers(graph: NetworkGraph, described: Mapping[str, Any]) -> NetworkGraph:
    """Insert activation quantizers with the widths that the file describes."""
    if not described:
        return graph  # activations are in float
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
        if weight.integers.shape != own[f"{layer}.weight"].shape:
            raise ValueError(f"the weight of {layer} has another shape there")
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
