"""The smallest network within a distance, beside every allocation of the front in turn."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mixed_bit import SearchSettings, feature_extract, search
from mixed_bit.allocation.program import Program
from mixed_bit.comparison.distance import find_smallest
from mixed_bit.comparison.outcome import Outcome
from mixed_bit.problem import Problem
from mixed_bit.sensitivity.base import Sensitivity, round_weights
from ompq.cost import BITS_PER_MB
from ompq.errors import OmpqError
from ompq.graph import NetworkGraph, fold_batch_norm, trace
from ompq.zoo import load_network


@pytest.fixture(scope="module")
def graph() -> NetworkGraph:
    torch.manual_seed(0)
    return trace(load_network("small_resnet").module, (3, 16, 16))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Told:
    """Outcomes that follow from the size: the divergence is its inverse, answers change below."""

    num_images = 40
    top1 = None

    def __init__(self) -> None:
        self.sizes: list[float] = []

    def measure(self, assignment) -> Outcome:
        self.sizes.append(assignment.size_mb)
        return Outcome(
            kl=0.01 / assignment.size_mb, agreement=100 - 1 / assignment.size_mb, top1=None
        )


def build(graph: NetworkGraph, **options) -> tuple[Problem, Program]:
    problem = Problem.build(graph, SearchSettings("PTQ", **{"size_mb": 1.0, **options}))
    count = len(problem.listed)
    generator = np.random.default_rng(3)
    table = np.sort(generator.random((count, len(problem.widths))), axis=1)[:, ::-1].copy()
    sensitivity = Sensitivity(table, np.zeros((count, 0)), np.zeros(count), 0.0)
    return problem, problem.build_program(sensitivity)


def list_front(problem: Problem, program: Program) -> list[float]:
    """All sizes of the front, from the largest down, one bit at a time."""
    limit, sizes = program.budgets[0].limit, []
    while True:
        budgets = (replace(program.budgets[0], limit=limit), *program.budgets[1:])
        try:
            found = problem.solve(replace(program, budgets=budgets))
        except OmpqError:
            return sizes
        sizes.append(problem.assign(found).size_mb)
        limit = int(sizes[-1] * BITS_PER_MB) - 1


@pytest.mark.parametrize("at", [0.0, 0.3, 0.62, 1.0])
def test_the_smallest_of_the_whole_front_is_found(at: float, graph: NetworkGraph) -> None:
    small = {"candidate_bits": (2, 4), "pins": {"stages.[12]*": 2}}
    problem, program = build(graph, kl_nats=0.1, **small)
    sizes = list_front(problem, program)
    assert len(sizes) > 8
    wanted = sizes[int(at * (len(sizes) - 1))]
    problem, program = build(graph, kl_nats=0.01 / wanted, **small)
    told = Told()
    allocation, distance = find_smallest(problem, program, told)
    assert problem.assign(allocation).size_mb == wanted
    assert distance.kl == pytest.approx(0.01 / wanted)
    assert allocation.optimal
    assert distance.tried == len(told.sizes) <= 20


def test_a_distance_that_nothing_meets_names_the_nearest(graph: NetworkGraph) -> None:
    problem, program = build(graph, kl_nats=0.0, drop_points=5.0)
    with pytest.raises(OmpqError) as refused:
        find_smallest(problem, program, Told())
    told = str(refused.value)
    nearest = float(told.split("the nearest has ")[1].split(" nats")[0])
    assert "`kl_nats` 0: no network with these widths is so near" in told
    assert "widen `candidate_bits`" in told
    assert "`drop_points` 5: no network" in told
    problem, program = build(graph, kl_nats=nearest)
    allocation, distance = find_smallest(problem, program, Told())
    assert set(allocation.bits) == {4}
    assert distance.kl <= nearest


def test_a_budget_stays_a_limit(graph: NetworkGraph) -> None:
    problem, program = build(graph, kl_nats=1.0)
    free, _ = find_smallest(problem, program, Told())
    bops = problem.assign(free).bops_g
    problem, program = build(graph, kl_nats=0.13, size_mb=0.08)
    with pytest.raises(OmpqError, match=r"the nearest has 0\.12\d+|the nearest has 0\.13"):
        problem, program = build(graph, kl_nats=0.12, size_mb=0.08)
        find_smallest(problem, program, Told())
    problem, program = build(graph, kl_nats=0.2, bops_g=bops * 1.5)
    found, _ = find_smallest(problem, program, Told())
    assert problem.assign(found).bops_g <= bops * 1.5


def test_the_network_is_judged_on_images_that_it_was_not_measured_on(
    graph: NetworkGraph, images: Tensor
) -> None:
    """Against weights rounded here, on every other image, by the formula of the divergence."""
    asked = SearchSettings("PTQ", kl_nats=0.01, metric="sqnr", candidate_bits=(3, 4, 5, 6, 8))
    found = search(graph, images, asked)
    assert found.num_images == 12
    assert found.distance is not None
    assert found.distance.num_images == 12
    assert not found.distance.by_labels
    folded = fold_batch_norm(graph)
    with torch.no_grad():
        expected = folded.module(images[1::2]).double().log_softmax(1)
        for layer, width in found.assignment.layer_bits().items():
            weight = folded.layer_module(layer).weight
            weight.copy_(round_weights(weight, [width])[0])
        got = folded.module(images[1::2]).double().log_softmax(1)
    kl = functional.kl_div(got, expected, reduction="batchmean", log_target=True)
    assert found.distance.kl == pytest.approx(float(kl), rel=1e-4)
    changed = (expected.argmax(1) != got.argmax(1)).double().mean()
    assert found.distance.drop == pytest.approx(100 * float(changed))
    assert float(kl) <= 0.01


def test_labels_count_where_there_are_some(trained: Path, tmp_path: Path) -> None:
    line = [
        "--model", "small_resnet", "--path", trained, "--dataset", "digits", "--num_images", 64,
        "--output_dir", tmp_path, "--quant_type", "PTQ", "--drop", 4, "--kl", 0.5,
        "--metric", "sqnr",
    ]  # fmt: skip
    arguments = feature_extract.build_parser().parse_args(list(map(str, line)))
    found = feature_extract.extract(arguments)
    feature_extract.write(found, tmp_path)
    content = json.loads((tmp_path / "bit_config.json").read_text())
    distance = content["distance"]
    assert distance["asked"] == {"kl": 0.5, "drop": 4.0}
    assert distance["by_labels"] is True
    assert distance["num_images"] == content["num_images"] == 32
    assert distance["kl"] <= 0.5
    assert distance["drop"] <= 4
    assert content["model_size_mb"] < 0.09
    told = found.result.distance.describe()
    assert "judged on 32 images held out (half of all)" in told
    assert "by labels" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_nats": -1.0}, "`kl_nats` -1.0: a distance is a number from 0 on"),
        ({"drop_points": math.nan}, "`drop_points` nan"),
        ({"drop_points": 1.0, "solver": "lp"}, "leave the solver at ilp"),
    ],
)
def test_distances_that_make_no_sense(options, message: str) -> None:
    with pytest.raises(OmpqError, match=message):
        SearchSettings("PTQ", **options)


def test_three_images_are_too_few(graph: NetworkGraph, images: Tensor) -> None:
    with pytest.raises(OmpqError, match=r"3 images: half of them judge .* 4 or more"):
        search(graph, images[:3], SearchSettings("PTQ", kl_nats=1.0))


def test_a_distance_goes_with_one_metric() -> None:
    base = ["--model", "m", "--dataset", "digits", "--kl", "0.1"]
    for other in (["--auto"], ["--sweep", "0.1", "0.2"]):
        arguments = feature_extract.build_parser().parse_args([*base, *other])
        with pytest.raises(OmpqError, match="--kl and --drop go with neither"):
            feature_extract.read_settings(arguments)
