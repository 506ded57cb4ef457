"""The file of a quantized network: what is read back, and how large it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from converted import build, train
from kinds import KINDS, build_kind, draw_images
from rewritten import read_plain
from saved import IMAGES, PREPROCESS, Saved, save
from support import lively
from torch import Tensor, nn

from ompq import artifact
from ompq.assignment import Assignment, assign, uniform
from ompq.files import save_tensors
from ompq.graph import trace
from ompq.integer import (
    ConversionSettings,
    IntegerExecution,
    IntegerNetwork,
    calibrate,
    convert_to_integers,
    export_integers,
)
from ompq.integer.layers import QuantizedLayer
from ompq.quantized import QuantizedNetwork
from ompq.sealed_file import load_content
from ompq.zoo import Network, load_network


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


def save_integers(
    file: Path, converted: IntegerNetwork, network: nn.Module, bits: int, **options: Any
) -> Assignment:
    assignment = uniform(trace(network, converted.input_shape).groups, bits, bits)
    artifact.save_quantized(file, converted, assignment, **options)
    return assignment


def read_integers(file: Path, network: nn.Module | None = None) -> artifact.Artifact:
    read = artifact.load_quantized(file, network)
    assert isinstance(read.network, IntegerNetwork)
    return read


@torch.inference_mode()
def check_same(read: artifact.Artifact, converted: IntegerNetwork, images: Tensor) -> None:
    """Compare logits, and all numbers of integer arithmetic, to the bit."""
    found = cast(IntegerNetwork, read.network)
    assert torch.equal(found.module(images), converted.module(images))
    expected = export_integers(converted, mixed=True)
    numbers = export_integers(found, mixed=True)
    assert numbers.keys() == expected.keys()
    for name, value in expected.items():
        assert numbers[name].dtype == value.dtype and torch.equal(numbers[name], value), name
    assert bool(read.integers) == found.runs_on_integers == converted.runs_on_integers
    if read.integers:
        assert read.integers.keys() == expected.keys()
        logits = IntegerExecution(found, read.integers).logits(images)
        assert torch.equal(logits, converted.module(images))


@pytest.mark.parametrize("kind", KINDS)
def test_integers_of_every_kind_of_network_are_read_back(kind: str, tmp_path: Path) -> None:
    network, images = build_kind(kind), draw_images(4)
    bits = 2 + list(KINDS).index(kind) % 7
    converted = build(network, images, bits)
    save_integers(tmp_path / "q.safetensors", converted, network, bits, entropy=bits % 2 == 0)
    read = read_integers(tmp_path / "q.safetensors", network)
    check_same(read, converted, images)
    assert cast(IntegerNetwork, read.network).float_operations == converted.float_operations


@pytest.mark.parametrize(
    "settings_",
    [{"bias_bits": 0}, {"bias_bits": 8}, {"dyadic": False}, {"quantize_sums": False}],
    ids=str,
)
def test_settings_of_the_conversion_are_kept(settings_: dict[str, Any], tmp_path: Path) -> None:
    network, images = build_kind("convolutional"), draw_images(4)
    converted = build(network, images, 5, **settings_)
    save_integers(tmp_path / "q.safetensors", converted, network, 5)
    read = read_integers(tmp_path / "q.safetensors", network).network
    with torch.inference_mode():
        assert torch.equal(read.module(images), converted.module(images))
    assert cast(IntegerNetwork, read).runs_on_integers == converted.runs_on_integers


def test_large_biases_are_held_as_integers(tmp_path: Path) -> None:
    network, images = build_kind("convolutional"), draw_images(4)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                layer.weight[0] *= 1e-7
                layer.bias[0] = 1.2345678
    converted = build(network, images, 4)
    save_integers(tmp_path / "q.safetensors", converted, network, 4)
    read = read_integers(tmp_path / "q.safetensors", network)
    check_same(read, converted, images)
    found = cast(IntegerNetwork, read.network)
    beyond_float32 = []
    for layer in found.layers().values():
        bias = layer.compute_integers().bias
        if bias is not None and int(bias.abs().max()) > 2**25:
            beyond_float32.append(bias)
            assert not torch.equal(bias.float().long(), bias)
    assert beyond_float32
    # A second file, of the network that was read, is the first one.
    save_integers(tmp_path / "again.safetensors", found, network, 4)
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "q.safetensors"
    ).read_bytes()


def find_bias(layer: QuantizedLayer) -> Tensor:
    bias = layer.compute_integers().bias
    assert bias is not None
    return bias


def test_biases_that_were_read_follow_training(tmp_path: Path) -> None:
    network, images = build_kind("tied weights"), draw_images(4)
    save_integers(tmp_path / "q.safetensors", build(network, images, 4), network, 4)
    read = cast(IntegerNetwork, read_integers(tmp_path / "q.safetensors", network).network)
    before = {name: find_bias(layer) for name, layer in read.layers().items()}
    train(read, images)
    changed = []
    for name, layer in read.layers().items():
        bias, held = layer.layer.bias, layer.compute_integers()
        assert bias is not None
        expected = torch.round(bias.detach().double() / held.scale.flatten()).long()
        assert torch.equal(find_bias(layer), expected)
        changed.append(not torch.equal(expected, before[name]))
    assert any(changed)
    save_integers(tmp_path / "again.safetensors", read, network, 4)
    check_same(read_integers(tmp_path / "again.safetensors", network), read, images)


def test_weights_take_the_bits_they_are_wide(tmp_path: Path) -> None:
    network, images = build_kind("tied weights"), draw_images(4)
    file = tmp_path / "q.safetensors"
    assignment = save_integers(file, build(network, images, 3), network, 3)
    bits, packed = assignment.layer_bits(), load_content(file).tensors
    assert set(bits.values()) == {3, 8}
    # The shared one is written once.
    sizes = {name: p.numel() for name, p in network.named_parameters() if p.dim() > 1}
    assert {name: len(packed[name]) for name in packed if name.endswith(".weight")} == {
        name: -(-size * bits[name.removesuffix(".weight")] // 8) for name, size in sizes.items()
    }
    plain, _ = read_plain(file)
    assert torch.equal(plain["a.weight"], plain["b.weight"])


def convert(name: str, bits: list[int]) -> tuple[Network, Assignment, IntegerNetwork, Tensor]:
    torch.manual_seed(0)
    source = load_network(name, num_classes=10)
    graph = trace(lively(source.module), (3, 32, 32))
    count = len(graph.groups)
    assignment = assign(graph.groups, "PTQ", (bits * count)[:count], 6)
    widths = assignment.layer_bits(), assignment.layer_act_bits()
    converted = convert_to_integers(graph, *widths, ConversionSettings())
    images = torch.randn(2, 3, 32, 32)
    calibrate(converted, [images], torch.device("cpu"))
    return source, assignment, converted, images


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bits", "most", "most_coded"),
    [
        ("resnet18", [2, 3, 4, 5, 6, 7, 8], 1.01, 0.92),
        ("mobilenet_v2", [5], 1.1, 1.02),
    ],
)
def test_files_are_as_large_as_promised(
    name: str, bits: list[int], most: float, most_coded: float, tmp_path: Path
) -> None:
    source, assignment, converted, images = convert(name, bits)
    file, promised = tmp_path / artifact.FILE, assignment.size_mb * 2**20
    artifact.save_quantized(file, converted, assignment, source=source)
    assert 0.95 < file.stat().st_size / promised < most
    check_same(read_integers(file), converted, images)
    artifact.save_quantized(file, converted, assignment, source=source, entropy=True)
    assert 0.5 < file.stat().st_size / promised < most_coded
    check_same(read_integers(file), converted, images)


def write_unpacked(file: Path, target: Path) -> None:
    """Write what a file stands for as format 2 did: biases in float, one byte for each weight."""
    tensors, description = read_plain(file)
    del description["checksum"]
    save_tensors(target, tensors, {**description, "format": "ompq-quantized/2"})


@torch.no_grad()
def test_files_of_the_format_before_are_read(saved: Saved, tmp_path: Path) -> None:
    write_unpacked(saved.file, tmp_path / artifact.FILE)
    read = artifact.load_quantized(tmp_path)
    assert torch.equal(read.network.module(IMAGES), saved.network.module(IMAGES))
