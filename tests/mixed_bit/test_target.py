"""A search for a device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support import ROOT
from torch import nn

from mixed_bit import SearchSettings, feature_extract, search
from mixed_bit.feasibility import check_feasible
from mixed_bit.options import build_search_parser, read_settings
from mixed_bit.problem import Problem
from ompq.errors import OmpqError
from ompq.graph import NetworkGraph, trace
from ompq.target import Target

NPU = Target("npu.yaml", weight_bits=(8,), operations={"conv": (4, 8), "depthwise": (8,)})


@pytest.fixture(scope="module")
def graph() -> NetworkGraph:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(), nn.Conv2d(8, 16, 1), nn.Flatten(), nn.Linear(1024, 10),
    )  # fmt: skip
    return trace(module.eval(), (3, 8, 8))


def test_a_search_gives_what_the_device_has(graph: NetworkGraph) -> None:
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    asked = SearchSettings("PTQ", bops_g=0.01, metric="sqnr", target=NPU)
    free = search(graph, images, asked)
    assert free.bits == [8, 8, 8, 8]
    less = free.assignment.bops_g - 1e-6
    found = search(graph, images, SearchSettings("PTQ", bops_g=less, metric="sqnr", target=NPU))
    assert set(found.assignment.layer_bits().values()) == {4, 8}
    NPU.check(found.assignment, graph)
    assert found.problem.widths == (4, 8)


def test_given_widths_are_those_that_the_device_has_too(graph: NetworkGraph) -> None:
    settings = SearchSettings("PTQ", size_mb=1.0, candidate_bits=(2, 4, 6, 8), target=NPU)
    problem = Problem.build(graph, settings)
    assert [problem.choices.widths[g.name] for g in graph.groups] == [(4, 8), (8,), (4, 8), (8,)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidate_bits": (2, 4)}, "2 is to have 2, 4 bits, depthwise may have 8"),
        ({"pins": {"6": 4}}, "6 is to have 4 bits, linear may have 8"),
        ({"candidate_bits_by_layer": {"0": (3, 5)}}, "0 is to have 3, 5 bits, conv may have 4, 8"),
    ],
)
def test_widths_that_the_device_lacks_are_named(options, message: str, graph) -> None:
    with pytest.raises(OmpqError) as refused:
        Problem.build(graph, SearchSettings("PTQ", size_mb=1.0, target=NPU, **options))
    assert f"target npu.yaml: {message}" in str(refused.value)


def test_the_8_bits_of_the_ends_must_be_the_device_s_too(graph: NetworkGraph) -> None:
    narrow = Target("narrow.yaml", weight_bits=(4,))
    with pytest.raises(OmpqError, match="0 is to have 8 bits, conv may have 4"):
        Problem.build(graph, SearchSettings("QAT", size_mb=1.0, target=narrow))
    pins = {"0": 4, "6": 4}
    Problem.build(graph, SearchSettings("QAT", size_mb=1.0, target=narrow, pins=pins))


def test_memory_of_the_device_is_a_budget(graph: NetworkGraph) -> None:
    device = Target("d.yaml", flash_kb=8.0, act_memory_kb=100.0)
    settings = SearchSettings("PTQ", target=device)
    assert (settings.size_mb, settings.act_memory_kb) == (8 / 1024, 100.0)
    assert SearchSettings("PTQ", size_mb=0.001, target=device).size_mb == 0.001
    assert SearchSettings("PTQ", size_mb=5.0, target=device).size_mb == 8 / 1024
    check_feasible(Problem.build(graph, settings))
    tiny = Target("tiny.yaml", flash_kb=1.0, weight_bits=(4, 8))
    with pytest.raises(OmpqError) as refused:
        check_feasible(Problem.build(graph, SearchSettings("PTQ", target=tiny)))
    told = str(refused.value)
    assert "`size_mb` 0.000976562 of target tiny.yaml is below 0.0" in told
    assert "with other widths than target tiny.yaml has 0.0" in told
    assert "act_bits" not in told


def test_activation_widths_are_those_of_the_device(tmp_path: Path) -> None:
    (tmp_path / "four.yaml").write_text("activation_bits: [4, 6]\n")
    base = ["--model", "m", "--dataset", "digits", "--model_size", "1"]
    base += ["--target", str(tmp_path / "four.yaml")]
    assert read_settings(build_search_parser().parse_args(base)).act_bits == 6
    for given in ("8", "4,8"):
        line = [*base, "--act_bits", given, "--bops", "1"]
        with pytest.raises(OmpqError, match=r"`act_bits` 8: target .* has 4, 6"):
            read_settings(build_search_parser().parse_args(line))


def test_the_command_line_and_the_file(trained: Path, tmp_path: Path) -> None:
    device = ROOT / "examples" / "targets" / "npu.yaml"
    line = [
        "--model", "small_resnet", "--path", trained, "--dataset", "digits", "--num_images", 8,
        "--output_dir", tmp_path, "--quant_type", "PTQ", "--model_size", 0.1, "--metric", "sqnr",
        "--target", device,
    ]  # fmt: skip
    arguments = feature_extract.build_parser().parse_args(list(map(str, line)))
    feature_extract.write(feature_extract.extract(arguments), tmp_path)
    content = json.loads((tmp_path / "bit_config.json").read_text())
    assert content["target"] == str(device)
    assert content["candidates"] == [4, 8]
    by_layer = {layer: g["bits"] for g in content["groups"] for layer in g["layers"]}
    assert by_layer["classifier"] == 8
    assert set(by_layer.values()) == {4, 8}
