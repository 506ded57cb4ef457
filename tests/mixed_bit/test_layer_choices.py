"""Widths and pins by layer: exact names and globs."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixed_bit import SearchSettings, feature_extract, search
from mixed_bit.options import build_compare_parser, build_search_parser, read_settings
from mixed_bit.problem import Problem
from ompq.errors import OmpqError
from ompq.graph import NetworkGraph, trace
from ompq.zoo import load_network


@pytest.fixture(scope="module")
def graph() -> NetworkGraph:
    torch.manual_seed(0)
    return trace(load_network("small_resnet").module, (3, 16, 16))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def widths(graph: NetworkGraph, images: Tensor, **options) -> dict[str, int]:
    settings = SearchSettings("PTQ", size_mb=0.5, metric="sqnr", **options)
    return search(graph, images, settings).assignment.layer_bits()


def test_a_glob_pins_all_that_it_matches_and_an_exact_name_goes_before(graph, images) -> None:
    free = widths(graph, images)
    alone = "stages.2.0.conv1"
    pins = {alone: 5, "stages.2*": 3, "*": 2, "classifier": 7}
    found = widths(graph, images, pins=pins)
    assert set(free.values()) == {4}
    assert found[alone] == 5
    assert found["classifier"] == 7
    assert {w for name, w in found.items() if name not in (alone, "classifier")} == {2}


def test_candidates_by_layer(graph, images) -> None:
    found = widths(
        graph, images, candidate_bits=(3,), candidate_bits_by_layer={"stages.1*": (2, 6, 8)}
    )
    for name, width in found.items():
        tied = next(g.layers for g in graph.groups if name in g.layers)
        matched = any(fnmatch.fnmatch(layer, "stages.1*") for layer in tied)
        assert width == (8 if matched else 3)


def test_only_widths_that_somebody_may_get_are_chosen_from(graph) -> None:
    settings = SearchSettings(
        "PTQ", 0.5, candidate_bits=(4,), candidate_bits_by_layer={"stages.2*": (2, 8)}
    )
    problem = Problem.build(graph, settings)
    assert problem.widths == (2, 4, 8)


def tied_group(graph: NetworkGraph):
    return next(group for group in graph.groups if len(group.layers) > 1)


def test_tied_layers_whose_patterns_contradict_are_named(graph, images) -> None:
    first, second = tied_group(graph).layers[:2]
    with pytest.raises(OmpqError) as refused:
        widths(graph, images, pins={"*": 4, second: 8})
    told = str(refused.value)
    assert f"`pins` {second}=8: tied to {first}, which is pinned at 4 by *" in told
    with pytest.raises(OmpqError) as refused:
        widths(graph, images, candidate_bits_by_layer={first: (2, 3), second: (4, 8)})
    told = str(refused.value)
    assert f"{second}=4,8: tied to {first}=2,3" in told
    found = widths(graph, images, candidate_bits_by_layer={first: (2, 3), second: (3, 8)})
    assert found[first] == found[second] == 3


@pytest.mark.parametrize("option", ["pins", "candidate_bits_by_layer"])
def test_a_pattern_without_a_layer_is_refused(option: str, graph, images) -> None:
    value = 4 if option == "pins" else (2, 4)
    with pytest.raises(OmpqError) as refused:
        widths(graph, images, **{option: {"layer9.*": value}})
    told = str(refused.value)
    assert f"`{option}` layer9.*: the network has no such layer; the closest names are" in told


def test_widths_of_a_layer_that_keeps_its_8_bits_are_refused(graph) -> None:
    last = graph.groups[-1].name
    settings = SearchSettings("QAT", 1.0, candidate_bits_by_layer={last: (2, 4)})
    with pytest.raises(OmpqError, match=f"{last}: QAT keeps the first and the last layer at 8"):
        Problem.build(graph, settings)
    everything = SearchSettings("QAT", 1.0, candidate_bits_by_layer={"*": (2, 4)})
    assert Problem.build(graph, everything).choices.widths[last] == (8,)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"a": ()}, "give widths from 2 to 8"), ({"a": (1, 4)}, "2 to 8"), ({"a": 4}, "lists of")],
)
def test_widths_by_layer_that_are_none(given, message: str) -> None:
    with pytest.raises(OmpqError, match=message):
        SearchSettings("PTQ", 1.0, candidate_bits_by_layer=given)


def test_plain_widths_and_those_of_layers_on_one_command_line() -> None:
    base = ["--model", "small_resnet", "--dataset", "digits", "--model_size", "1"]
    line = ["--bits", "2,3", "--bits", "stages.1*=2,4", "--bits", "4 5", "--bits", "fc=8"]
    settings = read_settings(build_search_parser().parse_args([*base, *line]))
    assert settings.candidate_bits == (4, 5)
    assert settings.candidate_bits_by_layer == {"stages.1*": (2, 4), "fc": (8,)}
    pins = ["--pin", "a*=4", "--pin", "b=3", "--pin", "a*=4"]
    settings = read_settings(build_search_parser().parse_args([*base, *pins]))
    assert list(settings.pins.items()) == [("b", 3), ("a*", 4)]
    again = ["--bits", "fc=8", "--bits", "fc=4"]
    with pytest.raises(OmpqError, match="--bits fc is given twice"):
        build_search_parser().parse_args([*base, *again])
    for text in ("=4", "fc=", "fc=x"):
        with pytest.raises(OmpqError):
            build_search_parser().parse_args([*base, "--bits", text])
    compare = ["--model", "m", "--sizes", "1", "--bits", "fc=8"]
    assert build_compare_parser().parse_args(compare).bits_by_layer == {"fc": (8,)}


def test_the_file_tells_what_was_asked(trained: Path, tmp_path: Path) -> None:
    line = [
        "--model", "small_resnet", "--path", trained, "--dataset", "digits", "--num_images", 8,
        "--output_dir", tmp_path, "--quant_type", "PTQ", "--model_size", 0.5, "--metric", "sqnr",
        "--bits", "stages.1*=2,6", "--pin", "cl*=5",
    ]  # fmt: skip
    arguments = feature_extract.build_parser().parse_args(list(map(str, line)))
    feature_extract.write(feature_extract.extract(arguments), tmp_path)
    content = json.loads((tmp_path / "bit_config.json").read_text())
    assert content["candidates_by_layer"] == {"stages.1*": [2, 6]}
    assert content["pins"] == {"cl*": 5}
    by_layer = {layer: g["bits"] for g in content["groups"] for layer in g["layers"]}
    assert by_layer["classifier"] == 5
