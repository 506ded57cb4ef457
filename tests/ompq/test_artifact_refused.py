"""The file of a quantized network: what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from converted import build
from hypothesis import given, settings
from hypothesis import strategies as st
from rewritten import Change, change_file, read_plain
from safetensors.torch import save_file
from saved import IMAGES, Saved, save
from support import lively
from torch import Tensor

from ompq import artifact
from ompq.assignment import uniform
from ompq.errors import OmpqError
from ompq.files import save_tensors
from ompq.graph import trace
from ompq.zoo import load_network


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("artifact")
    return save(folder, symmetric=False, per_channel=True, activations=True)


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a network that runs on integers."""
    torch.manual_seed(0)
    source = load_network("small_resnet", num_classes=5)
    converted = build(lively(source.module), IMAGES, 4)
    assignment = uniform(trace(source.module, (3, 16, 16)).groups, 4, 4)
    file = tmp_path_factory.mktemp("integers") / artifact.FILE
    artifact.save_quantized(file, converted, assignment, source=source)
    return file


def refuse(path: Path, message: str) -> None:
    with pytest.raises(OmpqError, match=message) as refused:
        artifact.load_quantized(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kept", [0, 7, 400, -1])
def test_a_truncated_file_is_refused(kept: int, saved: Saved, tmp_path: Path) -> None:
    content = saved.file.read_bytes()
    (tmp_path / artifact.FILE).write_bytes(content[:kept])
    refuse(tmp_path, r"is damaged: .*; write it again$")


def flip(content: bytes, place: int, bit: int) -> bytes:
    harmed = bytearray(content)
    harmed[place] ^= 1 << bit
    return bytes(harmed)


@given(st.data())
@settings(deadline=None)
def test_a_flipped_bit_is_told(saved: Saved, data: st.DataObject) -> None:
    content = saved.file.read_bytes()
    header = int.from_bytes(content[:8], "little") + 8
    # As often in the few bytes before the tensors as in all of them.
    last = data.draw(st.sampled_from([header, len(content)])) - 1
    place, bit = data.draw(st.integers(0, last)), data.draw(st.integers(0, 7))
    harmed = saved.folder / "flipped.safetensors"
    harmed.write_bytes(flip(content, place, bit))
    refuse(harmed, r"is damaged: .*; write it again$")


@pytest.mark.parametrize("text", ["ompq-quantized/3", '\\"format', '\\"checksum', '\\"ompq'])
@pytest.mark.parametrize("bit", range(7))
def test_a_flipped_bit_where_the_format_stands_is_told(
    bit: int, text: str, saved: Saved, tmp_path: Path
) -> None:
    content = saved.file.read_bytes()
    found = content.find(text.strip("\\").encode())
    for place in range(found, found + len(text)):
        (tmp_path / artifact.FILE).write_bytes(flip(content, place, bit))
        refuse(tmp_path, r"is damaged: .*; write it again$")


def test_a_file_of_something_else_is_refused(saved: Saved, tmp_path: Path) -> None:
    refuse(tmp_path, "does not exist")
    file = tmp_path / artifact.FILE
    torch.save({"weight": torch.zeros(3)}, file)
    refuse(file, "is damaged: it is no whole safetensors file")
    save_file({"weight": torch.zeros(3)}, file)
    refuse(file, "is not a quantized network of format ompq-quantized/3")
    tensors, description = read_plain(saved.file)
    del description["checksum"]
    save_tensors(file, tensors, {**description, "format": "ompq-quantized/1"})
    refuse(file, "is not a quantized network of format")


def test_a_file_of_a_newer_format_is_refused(saved: Saved, tmp_path: Path) -> None:
    file = tmp_path / artifact.FILE
    newer = {"format": "ompq-quantized/17"}
    told = "is of a newer format, ompq-quantized/17; update the toolkit$"
    change_file(saved.file, lambda _, description: description.update(newer), file)
    refuse(file, told)
    save_tensors(file, {}, newer)  # it may have no checksum, or another one
    refuse(file, told)


@torch.no_grad()
def test_what_a_later_version_adds_is_ignored(saved: Saved, tmp_path: Path) -> None:
    file = tmp_path / artifact.FILE

    def add(tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
        tensors["test images"] = torch.zeros(2, 3, 16, 16)
        description["licence"] = ["none"]

    change_file(saved.file, add, file)
    read = artifact.load_quantized(file)
    assert torch.equal(read.network.module(IMAGES), saved.network.module(IMAGES))


def add_layer(tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    table = description["layers"]
    table["names"].append("elsewhere")
    for key, column in table.items():
        if key != "names" and isinstance(column, list):
            column.append(column[0])
    tensors["elsewhere.weight"] = tensors[f"{table['names'][0]}.weight"]
    table["zero_point"] = [None] * (len(table["names"]) - 1) + [0]
    for name in ("*.weight_scale", "*.bias.float32"):
        tensors[name] = torch.cat([tensors[name], torch.ones(table["shape"][0][0])])


def add_activation(tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    table = description["activations"]
    table["names"].append("elsewhere")
    for key, column in table.items():
        if key != "names" and isinstance(column, list):
            column.append(None if key == "zero_point" else column[0])


def change_shape(tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    shape = description["layers"]["shape"][0]
    shape[1:] = [*shape[:0:-1], 1] if len(shape) == 2 else [shape[1] * shape[2], 1, shape[3]]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda tensors, _: tensors.pop("*.bias.float32"), r"does not hold '\*.bias.float32'"),
        (lambda tensors, _: tensors.pop("*.weight_scale"), r"is damaged: .*weight_scale"),
        (lambda tensors, _: tensors["*.bias.float32"].fill_(torch.nan), "values that cannot be"),
        (lambda tensors, _: tensors["*.bias.float32"].fill_(torch.inf), "values that cannot be"),
        (lambda tensors, _: tensors["*.weight_scale"].neg_(), "values that cannot be"),
        (lambda tensors, _: tensors["*.scale"].zero_(), "values that cannot be"),
        (lambda tensors, _: tensors.update({"classifier.weight": torch.zeros(2)}), "does not fit"),
        (change_shape, "does not fit"),
        (lambda _, description: description.pop("preprocess"), "does not hold 'preprocess'"),
        (lambda _, description: description.pop("same"), "does not hold 'same'"),
        (lambda _, description: description.update(input_shape=[3, 16]), "does not fit"),
        (lambda _, description: description.update(layers=[]), "does not fit"),
        (lambda _, description: description["layers"].update(shape=[]), "does not fit"),
        (lambda _, description: description["layers"].update(bits=9), "does not fit"),
        (lambda _, description: description["layers"].update(code="lz"), "does not hold 'lz'"),
        (lambda _, description: description.update(class_names=[1]), "are no list of texts"),
        (lambda _, description: description["architecture"].update(name=3), "does not fit"),
        (
            lambda _, description: description["architecture"].update(name="resnet18"),
            "of another network|does not fit",
        ),
        (add_layer, "layer elsewhere is not in the network"),
        (add_activation, "activation elsewhere differs"),
    ],
)
def test_what_does_not_fit_the_network_is_refused(
    harm: Change, message: str, saved: Saved, tmp_path: Path
) -> None:
    file = tmp_path / artifact.FILE
    change_file(saved.file, harm, file)
    refuse(file, message)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (change_shape, "has the shape|does not fit"),
        (lambda tensors, _: tensors.pop("*.scale"), r"does not hold '\*.scale'"),
        (lambda _, description: description["layers"].update(bias=None), "values too many"),
        (lambda _, description: description["layers"].update(reads=None), "does not hold"),
        (lambda _, description: description.pop("dyadic"), "does not hold 'dyadic'"),
        (lambda _, description: description.update(quantize_sums=False), "of another network"),
    ],
)
def test_integers_that_do_not_fit_the_network_are_refused(
    harm: Change, message: str, integers: Path, tmp_path: Path
) -> None:
    file = tmp_path / artifact.FILE
    change_file(integers, harm, file)
    refuse(file, message)
