"""Devices: their files, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import ROOT
from torch import nn

from ompq.assignment import Assignment, assign
from ompq.errors import OmpqError
from ompq.graph import NetworkGraph, trace
from ompq.target import Target, name_operation, read_target

EXAMPLES = sorted((ROOT / "examples" / "targets").glob("*.yaml"))


@pytest.fixture(scope="module")
def graph() -> NetworkGraph:
    """A dense convolution, a depthwise one, a dense one, and a classifier."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    return trace(module.eval(), (1, 8, 8))


def widths(graph: NetworkGraph, *bits: int, act_bits: int = 8) -> Assignment:
    return assign(graph.groups, "PTQ", bits, act_bits)


def read(tmp_path: Path, text: str) -> Target:
    file = tmp_path / "device.yaml"
    file.write_text(text)
    return read_target(file)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_are_targets(file: Path, graph: NetworkGraph) -> None:
    target = read_target(file)
    assert target.activation_bits == (8,)
    target.check(widths(graph, 8, 8, 8, 8), graph)


def test_the_three_examples_are_what_they_are_called(graph: NetworkGraph) -> None:
    cortex, npu, runtime = map(read_target, EXAMPLES)
    assert [Path(target.name).stem for target in (cortex, npu, runtime)] == [
        "cortex_m", "npu", "onnxruntime_cpu",
    ]  # fmt: skip
    assert (cortex.act_memory_kb, cortex.flash_mb) == (512, 2)
    assert npu.find_widths("conv") == (4, 8)
    assert npu.find_widths("depthwise") == npu.find_widths("linear") == (8,)
    assert runtime.widths == (2, 3, 4, 5, 6, 7, 8)
    assert runtime.symmetric


def test_what_is_not_named_falls_back(graph: NetworkGraph) -> None:
    dense = Target("a", weight_bits=(8,), operations={"conv": (4,)})
    assert dense.find_widths("depthwise") == (4,)
    assert dense.find_widths("linear") == (8,)
    assert Target("a").find_widths("linear") == (2, 3, 4, 5, 6, 7, 8)
    found = [name_operation(graph.layer_module(name)) for name in graph.layers]
    assert found == ["conv", "depthwise", "conv", "linear"]
    assert name_operation(nn.Conv2d(8, 8, 3, groups=2)) == "conv"


def test_a_width_that_the_device_lacks_is_named_with_its_layer(graph: NetworkGraph) -> None:
    target = read_target(ROOT / "examples" / "targets" / "npu.yaml")
    target.check(widths(graph, 4, 8, 4, 8), graph)
    with pytest.raises(OmpqError) as refused:
        target.check(widths(graph, 3, 4, 8, 4), graph)
    told = str(refused.value)
    assert "0 has 3 bits, conv may have 4, 8" in told
    assert "2 has 4 bits, depthwise may have 8" in told
    assert "6 has 4 bits, linear may have 8" in told
    assert "npu.yaml" in told
    assert "\n" not in told
    with pytest.raises(OmpqError, match="0 reads 4 bits, activations may have 8"):
        target.check(widths(graph, 8, 8, 8, 8, act_bits=4), graph)
    with pytest.raises(OmpqError, match="has activations of 8 bits, and these stay in float"):
        target.check(widths(graph, 8, 8, 8, 8), graph, act_quant=False)


def test_memory_that_the_device_lacks_is_told(graph: NetworkGraph) -> None:
    eight = widths(graph, 8, 8, 8, 8)
    kb = eight.size_mb * 1024
    Target("a", flash_kb=kb).check(eight, graph)
    with pytest.raises(OmpqError, match="KB for weights, and these take"):
        Target("a", flash_kb=kb - 0.01).check(eight, graph)
    # The depthwise convolution reads and writes 8 channels of 8 × 8.
    Target("a", act_memory_kb=1.0).check(eight, graph)
    with pytest.raises(
        OmpqError, match=r"0\.99 KB for activations, and these take 1\.0000 KB at 2"
    ):
        Target("a", act_memory_kb=0.99).check(eight, graph)


def test_choices_that_contradict_the_device() -> None:
    target = Target("a", symmetric=True, per_channel=False, activation_bits=(4, 8))
    target.check_choices(symmetric=True, per_channel=False, act_bits=4)
    target.check_choices()
    for choice, field in (
        ({"symmetric": False}, "`symmetric`"),
        ({"per_channel": True}, "`per_channel`"),
        ({"act_bits": 6}, "`act_bits` 6"),
    ):
        with pytest.raises(OmpqError, match=f"^{field}"):
            target.check_choices(**choice)
    replace(target, symmetric=False, per_channel=True).check_choices(
        symmetric=False, per_channel=True
    )
    assert target.choose_act_bits(8) == 8
    assert target.choose_act_bits(6) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a target; give it some of weight_bits"),
        ("[4, 8]", "is not a target"),
        ("weight_bit: [4]", "unknown key weight_bit; did you mean weight_bits?"),
        ("zebra: 1", "unknown key zebra; there are weight_bits"),
        ("1: 2", "unknown key 1"),
        ("weight_bits: 8", "weight_bits is 8; write a list of widths"),
        ("weight_bits: []", "weight_bits is an empty list"),
        ("weight_bits:", "weight_bits is None; write a list"),
        ("weight_bits: [4, 16]", "weight_bits: entry 2 is 16"),
        ("weight_bits: [true]", "whole numbers from 2 to 8"),
        ("activation_bits: ['8']", "whole numbers from 2 to 8"),
        ("operations: [8]", "operations is [8]; write it like"),
        ("operations: {}", "operations is {}; write it like"),
        ("operations: {convolution: [8]}", "unknown key convolution; there are conv"),
        ("operations: {conv: 8}", "operations: conv is 8; write a list"),
        ("operations: {conv: []}", "operations: conv is an empty list"),
        ("symmetric: 1", "symmetric is 1; write true or false"),
        ("per_channel: 'yes'", "per_channel is 'yes'; write true or false"),
        ("act_memory_kb: -1", "act_memory_kb is -1; write a number of KB"),
        ("act_memory_kb: .nan", "act_memory_kb is nan"),
        (f"act_memory_kb: {'9' * 400}", "up to 1e9"),
        ("flash_kb: 1.0e+300", "up to 1e9"),
        ("weight_bits: [4]\nweight_bits: [8]", "in line 2: weight_bits is there twice"),
        ("operations:\n  conv: [4]\n  conv: [8]", "in line 3: conv is there twice"),
        ("weight_bits: [4]\0", "special characters are not allowed"),
        ("flash_kb: true", "flash_kb is True"),
        ("flash_kb: 2 MB", "flash_kb is '2 MB'"),
        ("a: [1", "is no YAML in line"),
        ("a: b: c", "is no YAML in line 1"),
        ("!!python/object:os.system {}", "is no YAML in line 1"),
    ],
)
def test_files_that_are_no_target(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OmpqError) as refused:
        read(tmp_path, text)
    told = str(refused.value)
    assert message in told
    assert "device.yaml" in told
    assert "\n" not in told


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OmpqError, match="cannot be read: No such file"):
        read_target(tmp_path / "nowhere.yaml")
    with pytest.raises(OmpqError, match="cannot be read"):
        read_target(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00weights")
    with pytest.raises(OmpqError, match=r"cannot be read|no YAML"):
        read_target(tmp_path / "binary.yaml")


def test_widths_are_sorted_and_counted_once(tmp_path: Path) -> None:
    target = read(tmp_path, "weight_bits: [8, 4, 8]\nflash_kb: 10\n")
    assert target.weight_bits == (4, 8)
    assert target.flash_kb == 10.0
