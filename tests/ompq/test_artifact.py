"""The file of a quantized network: what is read back, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import lively

from ompq import artifact
from ompq.assignment import uniform
from ompq.errors import OmpqError
from ompq.files import load_tensors, save_tensors
from ompq.graph import trace
from ompq.preprocess import Preprocess
from ompq.quantized import QuantizedNetwork, QuantizedWeight, make_quantizable
from ompq.quantizers import min_max_scale, quantize
from ompq.zoo import load_network

PREPROCESS = Preprocess(16, 16, mean=(0.4, 0.5, 0.6))
IMAGES = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@dataclass
class Saved:
    """A network, and the folder that holds its file."""

    network: QuantizedNetwork
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / artifact.FILE


def save(folder: Path, *, symmetric: bool, per_channel: bool, activations: bool) -> Saved:
    torch.manual_seed(0)
    source = load_network("small_resnet", num_classes=7)
    lively(source.module)
    graph = trace(source.module, (3, 16, 16))
    assignment = uniform(graph.groups, 3, 5)
    network = make_quantizable(graph, assignment)
    for layer, bits in assignment.layer_bits().items():
        weight = network.graph.layer_module(layer).weight
        params = min_max_scale(weight, bits, symmetric=symmetric, per_channel=per_channel)
        network.set_weight(layer, QuantizedWeight.of(quantize(weight, params), params))
    for quantizer in network.activations().values():
        quantizer.fit(IMAGES)
        quantizer.enabled = activations
    saved = Saved(network, folder)
    artifact.save_quantized(saved.file, network, assignment, source=source, preprocess=PREPROCESS)
    return saved


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("artifact")
    return save(folder, symmetric=False, per_channel=True, activations=True)


@pytest.mark.parametrize(
    ("symmetric", "per_channel", "activations"),
    [(False, True, True), (True, False, True), (True, True, False)],
)
@torch.no_grad()
def test_a_network_is_read_back_to_the_bit(
    symmetric: bool, per_channel: bool, activations: bool, tmp_path: Path
) -> None:
    options = {"symmetric": symmetric, "per_channel": per_channel, "activations": activations}
    written = save(tmp_path, **options)
    read = artifact.load_quantized(tmp_path)
    assert isinstance(read.network, QuantizedNetwork)
    expected = written.network.module(IMAGES)
    assert torch.equal(read.network.module(IMAGES), expected)
    assert expected.std() > 0
    kind = torch.int8 if symmetric else torch.uint8
    for layer, weight in written.network.weights.items():
        again = read.network.weights[layer]
        assert again.integers.dtype == kind and torch.equal(again.integers, weight.integers)
        assert again.bits == weight.bits
    found = read.network.activations()
    for node, quantizer in written.network.activations().items():
        assert (found[node].bits, found[node].enabled) == (quantizer.bits, activations)
    assert read.preprocess == PREPROCESS
    assert not read.integers


def test_the_file_may_be_named_instead_of_its_folder(saved: Saved) -> None:
    by_file, by_folder = artifact.load_quantized(saved.file), artifact.load_quantized(saved.folder)
    assert by_file.description == by_folder.description
    assert by_file.title.startswith("small_resnet, ")


def refuse(path: Path, message: str) -> None:
    with pytest.raises(OmpqError, match=message) as refused:
        artifact.load_quantized(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kept", [0, 7, 400, -1])
def test_a_truncated_file_is_refused(kept: int, saved: Saved, tmp_path: Path) -> None:
    content = saved.file.read_bytes()
    (tmp_path / artifact.FILE).write_bytes(content[:kept])
    refuse(tmp_path, "is damaged or no safetensors file")


def test_a_file_of_something_else_is_refused(saved: Saved, tmp_path: Path) -> None:
    refuse(tmp_path, "does not exist")
    file = tmp_path / artifact.FILE
    torch.save({"weight": torch.zeros(3)}, file)
    refuse(file, "is damaged or no safetensors file")
    save_file({"weight": torch.zeros(3)}, file)
    refuse(file, "is not a quantized network of format")
    tensors, description = load_tensors(saved.file)
    save_tensors(file, tensors, {**description, "format": "ompq-quantized/1"})
    refuse(file, "is not a quantized network of format")


def change_layer(tensors: dict[str, Any], description: dict[str, Any]) -> None:
    description["layers"]["elsewhere"] = description["layers"]["classifier"]


def change_activation(tensors: dict[str, Any], description: dict[str, Any]) -> None:
    description["activations"]["elsewhere"] = {"bits": 4, "enabled": False}


def change_network(tensors: dict[str, Any], description: dict[str, Any]) -> None:
    description["architecture"]["name"] = "resnet18"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda tensors, _: tensors.pop("classifier.bias"), "does not hold classifier.bias"),
        (lambda tensors, _: tensors.pop("classifier.weight_scale"), "is damaged: .*weight_scale"),
        (lambda tensors, _: tensors["classifier.bias"].fill_(torch.nan), "values that cannot be"),
        (lambda tensors, _: tensors["classifier.weight_scale"].neg_(), "values that cannot be"),
        (lambda tensors, _: tensors.update({"classifier.weight": torch.zeros(2)}), "does not fit"),
        (lambda _, description: description.pop("preprocess"), "does not hold 'preprocess'"),
        (lambda _, description: description.update(input_shape=[3, 16]), "does not fit"),
        (lambda _, description: description.update(layers=[]), "does not fit"),
        (lambda _, description: description["architecture"].update(name=3), "does not fit"),
        (change_layer, "layer elsewhere is not in the network"),
        (change_activation, "activation elsewhere differs"),
        (change_network, "of another network|does not fit"),
    ],
)
def test_what_does_not_fit_the_network_is_refused(
    harm: Callable[[dict[str, Any], dict[str, Any]], Any],
    message: str,
    saved: Saved,
    tmp_path: Path,
) -> None:
    tensors, description = load_tensors(saved.file)
    harm(tensors, description)
    file = tmp_path / artifact.FILE
    save_tensors(file, tensors, description)
    refuse(file, message)
