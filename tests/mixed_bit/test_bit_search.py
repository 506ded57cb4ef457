"""The search as Python code calls it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mixed_bit import SearchSettings, build_bit_config, search
from mixed_bit.report import collect_notes, draw_result
from ompq.assignment import load, resolve
from ompq.errors import OmpqError
from ompq.graph import NetworkGraph, trace
from ompq.zoo import load_network


@pytest.fixture(scope="module")
def graph() -> NetworkGraph:
    torch.manual_seed(0)
    return trace(load_network("small_resnet").module, (3, 16, 16))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def find(graph: NetworkGraph, images: torch.Tensor, quant_type: str = "PTQ", **options):
    return search(graph, images, SearchSettings(quant_type, **options))


def test_a_budget_is_kept_and_spent(graph: NetworkGraph, images: torch.Tensor) -> None:
    result = find(graph, images, size_mb=0.06)
    assert result.allocation.optimal
    assert result.assignment.size_mb <= 0.06
    room = (0.06 - result.assignment.size_mb) * 2**23
    raisable = [
        group.params
        for group, width in zip(graph.groups, result.assignment.widths, strict=True)
        if width < 4
    ]
    assert all(params > room for params in raisable)


@pytest.mark.parametrize("beta", [1e-9, 1e-3, 1.0, 10.0, 100.0])
def test_the_program_is_never_worse_than_the_relaxation(
    beta: float, graph: NetworkGraph, images: torch.Tensor
) -> None:
    exact = find(graph, images, size_mb=0.055, beta=beta)
    rounded = find(graph, images, size_mb=0.055, beta=beta, solver="lp")
    scale = np.exp(exact.importance.log_importance - exact.importance.log_importance.max())
    assert scale @ exact.allocation.bits >= scale @ rounded.allocation.bits
    assert rounded.assignment.size_mb <= 0.055


def test_qat_pins_the_first_and_the_last_layer(graph: NetworkGraph, images: torch.Tensor) -> None:
    result = find(graph, images, "QAT", size_mb=0.12, metric="orm")
    assert result.orthogonality.matrix.shape == (len(graph.groups) - 2,) * 2
    assert result.assignment.widths[0] == result.assignment.widths[-1] == 8
    assert set(result.assignment.bits) <= set(range(4, 9))
    assert result.assignment.activations[0] == 8


def test_two_budgets_at_once(graph: NetworkGraph, images: torch.Tensor) -> None:
    free = find(graph, images, size_mb=0.07)
    both = find(graph, images, size_mb=0.07, bops_g=free.assignment.bops_g * 0.9)
    assert both.allocation.optimal
    assert both.assignment.bops_g <= free.assignment.bops_g * 0.9
    assert both.assignment.size_mb <= 0.07


def test_candidates_and_pins(graph: NetworkGraph, images: torch.Tensor) -> None:
    name = graph.groups[3].name
    result = find(
        graph, images, size_mb=0.12, candidate_bits=(4, 8), pins={name: 3, graph.groups[0].name: 7}
    )
    widths = dict(zip([g.name for g in graph.groups], result.assignment.widths, strict=True))
    assert widths.pop(name) == 3
    assert widths.pop(graph.groups[0].name) == 7
    assert set(widths.values()) <= {4, 8}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_mb": 0.01}, r"`size_mb` 0\.01 is below 0\.0\d+, the least with these widths"),
        ({"bops_g": 0.001}, r"`bops_g` 0\.001 is below 0\.\d+, the least with these widths"),
        ({"size_mb": 1.0, "pins": {"nowhere": 4}}, "no such layer"),
        ({"size_mb": 1.0, "pins": {"classifier": 9}}, "whole numbers from 2 to 8"),
        ({"size_mb": 1.0, "candidate_bits": (1, 4)}, "whole numbers from 2 to 8"),
        ({"size_mb": float("nan")}, "a number above 0"),
        ({}, "no budget"),
        ({"size_mb": True}, "`size_mb` True: a budget is a number above 0"),
        ({"size_mb": 1.0, "beta": -1.0}, "not negative"),
        ({"size_mb": 1.0, "act_bits": 16}, "activation|act_bits"),
    ],
)
def test_requests_that_make_no_sense(options, message, graph, images) -> None:
    with pytest.raises(OmpqError, match=message):
        find(graph, images, **options)


def test_the_smallest_feasible_size_is_feasible(graph: NetworkGraph, images: torch.Tensor) -> None:
    with pytest.raises(OmpqError) as refused:
        find(graph, images, size_mb=0.001)
    smallest = float(str(refused.value).split("is below ")[1].split(",")[0])
    assert set(find(graph, images, size_mb=smallest).assignment.bits) == {2}


def test_the_file_comes_back_as_it_went(graph, images, tmp_path) -> None:
    result = find(graph, images, "QAT", size_mb=0.12, act_bits=6)
    config = build_bit_config(result, "small_resnet", seed=0)
    config.details["weights"] = "random initialisation"
    config.save(tmp_path / "bit_config.json")
    content = json.loads((tmp_path / "bit_config.json").read_text())
    assert list(content)[:8] == [
        "format", "model", "quant_type", "bits", "groups", "act_bits", "model_size_mb", "bops_g",
    ]  # fmt: skip
    expected = {"layers", "bits", "params", "ops", "gamma", "importance", "log_theta", "pinned"}
    assert all(expected <= set(group) for group in content["groups"])
    assert load(tmp_path / "bit_config.json").to_json() == content
    again = resolve(str(tmp_path / "bit_config.json"), graph.groups, "QAT")
    assert again.widths == result.assignment.widths
    assert again.bops_g == result.assignment.bops_g


def test_a_picture_is_drawn_and_random_weights_are_told(graph, images, tmp_path) -> None:
    result = find(graph, images, size_mb=0.06)
    draw_result(result, "small_resnet", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    details = {"weights": "random initialisation", "skipped_images": ["a.jpg"], "float_layers": {}}
    told = collect_notes(result, build_bit_config(result, "x", seed=0, details=details))
    assert any("random weights" in note for note in told)
    assert any("a.jpg" in note for note in told)
