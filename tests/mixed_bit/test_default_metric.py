"""The metric of a search that names none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from kinds import KINDS, build_kind, draw_images
from torch import Tensor, nn

from mixed_bit import SearchSettings, build_bit_config, search
from mixed_bit.comparison.pareto import trace_front
from mixed_bit.default_metric import settle_metric
from mixed_bit.feature_extract import build_parser, extract
from mixed_bit.options import read_settings
from mixed_bit.problem import Problem
from mixed_bit.report import collect_notes
from mixed_bit.sensitivity.evaluator import SensitivityEvaluator
from mixed_bit.sensitivity.features import Shard
from ompq.errors import OmpqError
from ompq.graph import trace
from ompq.runtime import Ranks
from ompq.zoo import load_network

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Chain(nn.Module):
    """Two convolutions and a classifier, with `between` behind the first."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)
        self.head, self.between = nn.Linear(6, 5), between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.between(self.first(x))).relu().mean((2, 3)))


def detach(x: Tensor) -> Tensor:
    return x.detach()


def take_root_of_nothing(x: Tensor) -> Tensor:
    return x + torch.sqrt(x * 0)


def step_without_gradient(x: Tensor) -> Tensor:
    return x * torch.heaviside(x, x * 0)


def find(network: nn.Module, **options: object):
    torch.manual_seed(0)
    settings = SearchSettings("PTQ", size_mb=1.0, candidate_bits=(2, 8), **options)  # type: ignore[arg-type]
    return search(network, IMAGES, settings)


def test_fisher_is_taken_and_told_where_nothing_is_named() -> None:
    torch.manual_seed(0)
    network = Chain(torch.relu)
    found, named = find(network), find(network, metric="fisher")
    np.testing.assert_array_equal(found.sensitivity.weights, named.sensitivity.weights)
    assert found.settings.metric == "fisher" and "fisher" in repr(found)
    details = {"weights": "", "skipped_images": []}
    config = build_bit_config(found, "chain", details=details)
    assert config.details["metric"] == "fisher"
    assert "sensitivities by fisher: no `metric` is named" in collect_notes(found, config)
    assert not named.notes


@pytest.mark.parametrize("given", [{"beta": 10.0}, {"centred": False}, {"solver": "lp"}])
def test_what_means_the_paper_takes_orthogonality(given: dict) -> None:
    found = find(Chain(torch.relu), **given)
    assert found.settings.metric == "orm"
    assert found.notes == (f"sensitivities by orm: the paper's, by `{next(iter(given))}`",)
    named = find(Chain(torch.relu), metric="orm", **given)
    assert found.bits == named.bits


def test_a_metric_that_is_named_stays_beside_beta() -> None:
    found = find(Chain(torch.relu), metric="sqnr", beta=3.0)
    assert found.settings.metric == "sqnr"
    assert found.notes == ("`beta` without effect: `metric` sqnr measures no orthogonality",)
    assert not find(Chain(torch.relu), metric="orm_sqnr", beta=3.0).notes


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (detach, "no gradient reaches first"),
        (take_root_of_nothing, "its gradients are not finite"),
        (step_without_gradient, "gradients cannot be computed"),
    ],
)
def test_orthogonality_steps_in_where_gradients_fail(between: Callable, reason: str) -> None:
    found = find(Chain(between))
    assert found.settings.metric == "orm" and found.allocation.optimal
    (note,) = found.notes
    assert note.startswith("sensitivities by orm: `metric` fisher is not to be had: ")
    assert reason in note and "\n" not in note


def test_one_output_whose_share_is_always_whole_takes_orthogonality() -> None:
    found = find(nn.Sequential(Chain(torch.relu), nn.Linear(5, 1)))
    assert found.settings.metric == "orm" and "its gradients are all zero" in found.notes[0]


def test_gradients_that_fail_are_one_line_where_fisher_is_named() -> None:
    with pytest.raises(OmpqError, match=r"gradients cannot be computed .*choose another `metric`"):
        find(Chain(step_without_gradient), metric="fisher")
    with pytest.raises(OmpqError, match="gradients cannot be computed"):
        find(nn.Sequential(Chain(torch.relu), Detached()), metric="hessian")


class Detached(nn.Module):
    """Logits without a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def test_logits_of_every_pixel_take_orthogonality() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3))
    found = find(network)
    assert found.settings.metric == "orm" and "gives 5×4×4 values" in found.notes[0]


def test_frozen_networks_and_callers_without_gradients_have_fisher() -> None:
    torch.manual_seed(0)
    network = Chain(torch.relu).requires_grad_(False)
    expected = find(network).sensitivity.weights
    with torch.no_grad():
        found = find(network)
    assert found.settings.metric == "fisher"
    np.testing.assert_array_equal(found.sensitivity.weights, expected)


def test_several_processes_share_orthogonality() -> None:
    problem = Problem.build(
        trace(Chain(torch.relu).eval(), (3, 8, 8)), SearchSettings("PTQ", size_mb=1.0)
    )
    shards = [Shard(IMAGES[:4], 8)]
    evaluator = SensitivityEvaluator(problem, shards, ranks=Ranks(0, 2, 0))
    settled, notes = settle_metric(evaluator, problem)
    assert settled.settings.metric == "orm"
    assert notes[0].endswith("several processes share orthogonality alone")


def test_a_front_is_that_of_the_metric_that_was_taken() -> None:
    torch.manual_seed(0)
    settings = SearchSettings("PTQ", size_mb=1.0)
    problem = Problem.build(trace(load_network("small_resnet").module, (3, 8, 8)), settings)
    evaluator = SensitivityEvaluator(problem, [Shard(IMAGES, 8)])
    points = list(trace_front(evaluator, problem, 0.05, 0.07, 5))
    assert {point.candidate for point in points} == {"fisher"}
    assert {point.result.settings.metric for point in points} == {"fisher"}


def test_labels_need_no_metric_beside_them(tmp_path: Path) -> None:
    command = ["--model", "small_resnet", "--dataset", "digits", "--quant_type", "PTQ"]
    command += ["--model_size", "0.06", "--num_images", "8", "--output_dir", str(tmp_path)]
    command += ["--workers", "0"]
    parser = build_parser()
    assert read_settings(parser.parse_args([*command, "--labels"])).chosen_metric == "fisher"
    with pytest.raises(OmpqError, match="--labels goes with --metric fisher or hessian"):
        read_settings(parser.parse_args([*command, "--labels", "--beta", "10"]))
    found = extract(parser.parse_args(command))
    assert found.config.details["metric"] == "fisher"
    assert found.config.details["beta"] is None and found.config.details["centred"] is None
    assert json.dumps(found.config.to_json())
    # Four images in a batch are what the estimate of orthogonality needs.
    extract(parser.parse_args([*command, "--batch_size", "2"]))
    with pytest.raises(OmpqError, match="the minibatch estimate needs 4 images"):
        extract(parser.parse_args([*command, "--batch_size", "2", "--beta", "10"]))
    published = extract(parser.parse_args([*command, "--beta", "10"]))
    assert published.config.details["metric"] == "orm"
    assert published.result.orthogonality is not None
    told = [parser.in_flags(note) for note in published.result.notes]
    assert told == ["sensitivities by orm: the paper's, by --beta"]


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_every_kind_are_searched_by_default(kind: str) -> None:
    settings = SearchSettings("PTQ", bops_g=1.0, candidate_bits=(2, 8), candidate_act_bits=(4, 8))
    found = search(build_kind(kind), draw_images(4), settings)
    assert found.allocation.optimal and len(found.notes) == 1
    assert found.settings.metric in ("fisher", "orm")
