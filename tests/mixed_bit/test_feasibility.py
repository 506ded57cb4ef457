"""Budgets that cannot be kept name their floor, and what it would be without what binds."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from mixed_bit import SearchSettings, feature_extract
from mixed_bit.feasibility import check_feasible
from mixed_bit.latency.table import LatencyTable
from mixed_bit.problem import Problem
from ompq.errors import OmpqError
from ompq.graph import NetworkGraph, trace


@pytest.fixture(scope="module")
def graph() -> NetworkGraph:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 32, 1), nn.Flatten(), nn.Linear(32 * 64, 100),
    )  # fmt: skip
    return trace(module.eval(), (3, 8, 8))


def refuse(graph: NetworkGraph, quant_type: str = "PTQ", **options) -> str:
    with pytest.raises(OmpqError) as refused:
        check_feasible(Problem.build(graph, SearchSettings(quant_type, **options)))
    told = str(refused.value)
    assert "\n" not in told
    return told


def size(graph: NetworkGraph, **widths: int) -> float:
    """Megabytes of the layers at these widths; `all` is that of the others."""
    bits = sum(
        layer.params * widths.get(f"layer{name}", widths["all"])
        for name, layer in graph.layers.items()
    )
    return bits / 8 / 2**20


def numbers(told: str) -> dict[str, float]:
    """What a message says, by what it says it of."""
    return {
        name.strip(): float(value) for name, value in re.findall(r"([^;]+?) (\d+\.\d{4})", told)
    }


def test_the_floor_and_what_each_pin_and_set_of_widths_costs(graph) -> None:
    options = {"candidate_bits": (4, 8), "pins": {"6": 8, "2": 6}}
    told = refuse(graph, size_mb=0.01, **options)
    found = numbers(told)
    expected = {
        "`size_mb` 0.01 is below": size(graph, all=4, layer6=8, layer2=6),
        "without `pins` 6=8": size(graph, all=4, layer2=6),
        "without `pins` 2=6": size(graph, all=4, layer6=8),
        "with widths from 2 on": size(graph, all=2, layer6=8, layer2=6),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value <= found[name] < value + 1.001e-4, name
    assert told.startswith("`size_mb` 0.01 is below")
    assert "the least with these widths and pins; without `pins` 6=8" in told


def test_the_floor_that_is_printed_is_feasible_and_nothing_below(graph) -> None:
    floor = numbers(refuse(graph, size_mb=0.01))["`size_mb` 0.01 is below"]
    check_feasible(Problem.build(graph, SearchSettings("PTQ", size_mb=floor)))
    refuse(graph, size_mb=floor - 2e-4)
    # A pin that costs nothing is no answer.
    told = refuse(graph, size_mb=0.01, pins={"0": 2})
    assert "without" not in told


def test_a_glob_is_one_pin_and_widths_by_layer_are_named(graph) -> None:
    told = refuse(graph, size_mb=0.01, pins={"[02]": 8}, candidate_bits_by_layer={"4": (6, 8)})
    found = numbers(told)
    with_all = size(graph, all=2, layer0=8, layer2=8, layer4=6)
    assert found["`size_mb` 0.01 is below"] == pytest.approx(with_all, abs=1.1e-4)
    without = size(graph, all=2, layer4=6)
    assert found["without `pins` [02]=8"] == pytest.approx(without, abs=1.1e-4)
    without = size(graph, all=2, layer0=8, layer2=8)
    assert found["without `candidate_bits_by_layer` 4=6,8"] == pytest.approx(without, abs=1.1e-4)


def test_the_8_bits_of_the_ends_are_named(graph) -> None:
    found = numbers(refuse(graph, "QAT", size_mb=0.01))
    assert found["with widths from 2 on"] == pytest.approx(
        size(graph, all=2, layer0=8, layer6=8), abs=1.1e-4
    )
    ends = found["with the first and the last layer at 4 bits by `pins`"]
    assert ends == pytest.approx(size(graph, all=4), abs=1.1e-4)


def test_activation_bits_count_where_they_bind(graph) -> None:
    told = refuse(graph, bops_g=1e-6)
    by_two = sum(layer.ops for layer in graph.layers.values()) * 2 * 2 / 1e9
    assert numbers(told)["with `act_bits` 2"] == pytest.approx(by_two, abs=1.1e-4)
    told = refuse(graph, act_memory_kb=1.0)
    assert "`act_memory_kb` 1 is below 8.0000, the least with these widths, at 2" in told
    assert numbers(told)["with `act_bits` 2"] == 2.0
    told = refuse(graph, act_memory_kb=1.0, candidate_act_bits=(4, 8))
    assert numbers(told)["`act_memory_kb` 1 is below"] == 4.0
    assert numbers(told)["with `act_bits` 2"] == 2.0


def test_every_budget_that_is_below_its_floor_is_named(graph) -> None:
    told = refuse(graph, size_mb=0.01, bops_g=1e-6)
    assert "`size_mb` 0.01 is below" in told
    assert "`bops_g` 1e-06 is below" in told


def test_budgets_that_exclude_each_other_name_the_nearest_of_each(graph) -> None:
    """Four bits are the fastest here, two the smallest: beside enumeration of all widths."""
    times = {"0": {2: 9.0, 4: 1.0}, "2": {2: 7.0, 4: 2.0}, "4": {2: 3.0, 4: 3.0}, "6": {2: 5, 4: 4}}
    table = LatencyTable(times, "table.json")
    layers = list(graph.layers.values())
    known = []
    for widths in itertools.product((2, 4), repeat=4):
        bits = sum(layer.params * width for layer, width in zip(layers, widths, strict=True))
        spent = sum(times[layer.name][width] for layer, width in zip(layers, widths, strict=True))
        known.append((bits / 8 / 2**20, spent))
    limits = {"size_mb": size(graph, all=2) + 0.002, "latency_ms": 11.5}
    assert not any(mb <= limits["size_mb"] and ms <= limits["latency_ms"] for mb, ms in known)
    told = refuse(graph, candidate_bits=(2, 4), latency_table=table, **limits)
    assert "cannot be kept together, though each alone can" in told
    found = numbers(told)
    least = min(mb for mb, ms in known if ms <= limits["latency_ms"])
    assert found["`size_mb` beside `latency_ms` is"] == pytest.approx(least, abs=1.1e-4)
    least = min(ms for mb, ms in known if mb <= limits["size_mb"])
    assert found["`latency_ms` beside `size_mb` is"] == pytest.approx(least, abs=1.1e-4)
    asked = SearchSettings(
        "PTQ",
        size_mb=found["`size_mb` beside `latency_ms` is"],
        latency_ms=11.5,
        candidate_bits=(2, 4),
        latency_table=table,
    )
    check_feasible(Problem.build(graph, asked))


def test_flags_and_no_image_is_read(tmp_path: Path) -> None:
    """The data set is not there: nobody has looked for it yet."""
    line = [
        "--model", "small_resnet", "--dataset", "imagenet", "--data", "/nowhere",
        "--input_size", "16", "--num_classes", "10", "--quant_type", "PTQ",
        "--model_size", "0.01", "--pin", "classifier=8", "--output_dir", str(tmp_path),
    ]  # fmt: skip
    for further in ([], ["--kl", "0.1"]):
        arguments = feature_extract.build_parser().parse_args([*line, *further])
        with pytest.raises(OmpqError) as refused:
            feature_extract.extract(arguments)
        told = arguments.parser.in_flags(str(refused.value))
        assert told.startswith("--model_size 0.01 is below 0.0")
        assert "without --pin classifier=8 0.0" in told
