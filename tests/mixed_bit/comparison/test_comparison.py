"""What allocations are judged by: random ones, measured outcomes, sweeps, comparisons."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import lively
from torch import Tensor
from torch.nn.functional import log_softmax

from mixed_bit import SearchSettings, build_bit_config
from mixed_bit.allocation.program import Budget, Program
from mixed_bit.allocation.solve import solve
from mixed_bit.comparison.candidates import choose_best, try_candidates
from mixed_bit.comparison.compare_methods import (
    Comparison,
    compare_candidates,
    draw_comparison,
    print_comparison,
    write_comparison,
)
from mixed_bit.comparison.outcome import OutcomeEvaluator
from mixed_bit.comparison.pareto import (
    draw_front,
    find_knee,
    measure_front,
    space_evenly,
    trace_front,
    write_front,
)
from mixed_bit.comparison.random_baseline import draw_allocation
from mixed_bit.problem import Problem
from mixed_bit.sensitivity.evaluator import SensitivityEvaluator
from mixed_bit.sensitivity.features import Shard
from ompq.assignment import resolve
from ompq.errors import OmpqError
from ompq.graph import NetworkGraph, trace
from ompq.quantizers import fake_quantize, lp_scale
from ompq.zoo import load_network

WIDTHS = (2, 3, 4)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def graph() -> NetworkGraph:
    torch.manual_seed(0)
    return trace(lively(load_network("small_resnet").module), (3, 16, 16))


@pytest.fixture(scope="module")
def problem(graph: NetworkGraph) -> Problem:
    return Problem.build(graph, SearchSettings("PTQ", size_mb=0.06, metric="fisher"))


@pytest.fixture(scope="module")
def evaluator(problem: Problem, images: Tensor) -> SensitivityEvaluator:
    return SensitivityEvaluator(problem, [Shard(images[:16], 16)])


@pytest.fixture(scope="module")
def outcomes(evaluator: SensitivityEvaluator, images: Tensor) -> OutcomeEvaluator:
    return OutcomeEvaluator(evaluator.probed, images[16:], torch.arange(8) % 10)


def random_program(data: st.DataObject) -> Program:
    """Any prices, not falling with the width; one or two budgets that can be kept."""
    count, widths = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([(4, 8), WIDTHS]))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shape = (count, len(widths))
    sizes = generator.integers(1, 60, count)[:, None] * np.array(widths)
    budgets = [Budget("size", sizes, int(generator.integers(sizes[:, 0].sum(), sizes.sum() + 1)))]
    if data.draw(st.booleans()):
        times = generator.integers(0, 20, shape)
        least = int(times.min(axis=1).sum())
        budgets.append(Budget("latency", times, least + int(generator.integers(0, 20))))
    return Program(
        sensitivity=generator.normal(size=shape) * 10.0 ** generator.integers(-6, 6, (count, 1)),
        log_scale=np.zeros(count),
        widths=widths,
        allowed=np.ones(shape, dtype=bool),
        budgets=tuple(budgets),
        names=tuple(f"layer{i}" for i in range(count)),
    )


def feasible(program: Program) -> list[tuple[int, ...]]:
    return [
        choice
        for choice in itertools.product(*program.options())
        if all(budget.spent(choice) <= budget.limit for budget in program.budgets)
    ]


@settings(max_examples=150, derandomize=True)
@given(data=st.data())
def test_any_price_list_is_solved_exactly(data: st.DataObject) -> None:
    program = random_program(data)
    choices = feasible(program)
    if not choices:
        with pytest.raises(OmpqError):
            solve(program)
        return
    found = solve(program)
    least = min(program.total(choice) for choice in choices)
    assert found.optimal
    assert found.objective == pytest.approx(least, rel=1e-12, abs=1e-12)
    assert tuple(map(program.widths.index, found.bits)) in choices


@settings(max_examples=100, derandomize=True)
@given(data=st.data())
def test_random_allocations_keep_the_budgets_and_spend_them(data: st.DataObject) -> None:
    program = random_program(data)
    size = program.budgets[0]
    program = replace(program, budgets=(size,))
    found = draw_allocation(program, np.random.default_rng(data.draw(st.integers(0, 99))))
    choice = [program.widths.index(bits) for bits in found.bits]
    room = size.limit - size.spent(choice)
    assert room >= 0
    for row, k in zip(size.cost, choice, strict=True):
        assert all(cost - row[k] > room for cost in row[k + 1 :])


def test_random_allocations_differ_and_repeat_themselves(evaluator, problem) -> None:
    program = problem.build_program(evaluator.uniform_sensitivity())

    def draw(seed: int) -> list[tuple[int, ...]]:
        generator = np.random.default_rng(seed)
        return [draw_allocation(program, generator).bits for _ in range(10)]

    assert draw(3) == draw(3)
    assert len(set(draw(3))) > 5


@pytest.mark.parametrize("config", ["uniform2", "uniform3"])
def test_an_outcome_is_that_of_the_network_with_rounded_weights(
    config: str, graph: NetworkGraph, outcomes: OutcomeEvaluator, images: Tensor
) -> None:
    assignment = resolve(config, graph.groups, "PTQ")
    before = {name: value.clone() for name, value in graph.module.state_dict().items()}
    measured = outcomes.measure(assignment)
    with torch.no_grad():
        expected = graph.module(images[16:]).double()
        network = copy.deepcopy(graph.module)
        for layer, width in assignment.layer_bits().items():
            weight = network.get_submodule(layer).weight
            weight.copy_(fake_quantize(weight, lp_scale(weight, width)))
        found = network(images[16:]).double()
    logs, rounded = log_softmax(expected, dim=1), log_softmax(found, dim=1)
    kl = float((logs.exp() * (logs - rounded)).sum()) / 8
    assert measured.kl == pytest.approx(kl, rel=1e-3)
    same = (expected.argmax(1) == found.argmax(1)).double().mean()
    assert measured.agreement == pytest.approx(100 * float(same))
    hits = (found.argmax(1) == torch.arange(8) % 10).double().mean()
    assert measured.top1 == pytest.approx(100 * float(hits))
    after = graph.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_outcome_rounds_activations_where_they_are_chosen(graph, images) -> None:
    asked = SearchSettings("PTQ", size_mb=0.06, bops_g=0.05, candidate_act_bits=(3, 8))
    evaluator = SensitivityEvaluator(Problem.build(graph, asked), [Shard(images[:16], 16)])
    outcomes = OutcomeEvaluator(evaluator.probed, images[16:])
    assignment = resolve("uniform4", graph.groups, "PTQ")
    by_width = [
        outcomes.measure(replace(assignment, group_act_bits=(width,) * len(graph.groups))).kl
        for width in (8, 3)
    ]
    assert outcomes.measure(assignment).kl < by_width[0] < by_width[1]


def test_trials_keep_the_budget_and_name_themselves(evaluator, outcomes, problem) -> None:
    tried = list(try_candidates(evaluator, outcomes, problem, random_trials=3, seed=0))
    names = [str(trial.candidate) for trial in tried]
    assert names[:4] == ["sqnr", "fisher", "kl", "hessian"]
    assert {"orm β=10", "orm_sqnr β=0.01", "projection", "random 3"} <= set(names)
    assert len(names) == len(set(names))
    assert all(trial.assignment.size_mb <= 0.06 for trial in tried)


@pytest.mark.parametrize("size", [0.045, 0.06, 0.075])
def test_the_best_is_never_worse_than_anything_tried(size, evaluator, outcomes, problem) -> None:
    result, tried = choose_best(evaluator, outcomes, problem.at_size(size), seed=0)
    least = min(trial.outcome.kl for trial in tried)
    assert outcomes.measure(result.assignment).kl == least
    random = [trial for trial in tried if trial.candidate.name == "random"]
    assert len(random) == 20
    assert str(len(tried)) in result.allocation.note
    config = build_bit_config(result, "small_resnet")
    assert tuple(config.bits) == tuple(result.assignment.bits)


def test_a_sweep_is_the_whole_front(graph: NetworkGraph, images: Tensor) -> None:
    """On a network of few groups: against the front of all choices."""
    pins = {group.name: 4 for group in graph.groups[:-4]}
    asked = SearchSettings("PTQ", size_mb=1.0, metric="sqnr", pins=pins)
    problem = Problem.build(graph, asked)
    evaluator = SensitivityEvaluator(problem, [Shard(images, 24)])
    program = problem.build_program(evaluator.sensitivity("sqnr", 0.0))
    choices = list(itertools.product(*program.options()))
    spent = {choice: program.budgets[0].spent(choice) for choice in choices}
    front = []
    for choice in sorted(choices, key=lambda c: (spent[c], program.total(c))):
        if not front or program.total(choice) < front[-1][1]:
            front.append((spent[choice], program.total(choice)))
    high = max(spent.values()) / 2**23
    points = list(trace_front(evaluator, problem, 1e-6, high, 0))
    found = [(round(point.size_mb * 2**23), point.value) for point in reversed(points)]
    np.testing.assert_allclose(found, front, rtol=1e-9)
    assert all(point.result.allocation.optimal for point in points)
    few = list(trace_front(evaluator, problem, 1e-6, high, 5))
    assert 2 <= len(few) <= 6
    assert {round(p.size_mb * 2**23) for p in few} <= {size for size, _ in front}


def test_a_sweep_is_written_and_drawn_with_its_knee(evaluator, problem, tmp_path) -> None:
    points = list(trace_front(evaluator, problem, 0.045, 0.08, 30))
    write_front(points, tmp_path / "sweep.json", {"model": "small_resnet"})
    draw_front(points, "small_resnet", tmp_path / "sweep.png")
    rows = json.loads((tmp_path / "sweep.json").read_text())["points"]
    sizes = [row["model_size_mb"] for row in rows]
    assert sizes == sorted(sizes)
    assert [row["value"] for row in rows] == sorted((r["value"] for r in rows), reverse=True)
    (marked,) = [row for row in rows if row["knee"]]
    assert marked["bits"] == find_knee(points).result.bits
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_the_knee_of_two_straight_lines_is_where_they_meet(evaluator, problem) -> None:
    point = next(iter(trace_front(evaluator, problem, 0.045, 0.08, 3)))

    def at(size: int, value: float):
        assignment = point.result.assignment
        groups = (replace(assignment.groups[0], params=size),)
        short = replace(assignment, groups=groups, widths=(8,), listed=(True,))
        return replace(point, result=replace(point.result, assignment=short), value=value)

    corner = at(200, 1.0)
    assert find_knee([at(1000, 0.0), at(600, 0.5), corner, at(150, 5.0), at(100, 9.0)]) is corner


def test_an_automatic_sweep_takes_the_best_at_every_size(evaluator, outcomes, problem) -> None:
    sizes = space_evenly(0.05, 0.07, 3)
    points = list(measure_front(evaluator, outcomes, problem, sizes, seed=0))
    assert [point.result.settings.size_mb for point in points] == pytest.approx([0.07, 0.06, 0.05])
    for point in points:
        chosen = problem.at_size(point.result.settings.size_mb)
        tried = try_candidates(evaluator, outcomes, chosen, random_trials=20, seed=0)
        assert point.value == min(trial.outcome.kl for trial in tried)


@pytest.mark.parametrize("ends", [(0.07, 0.05), (0.0, 0.05), (0.06, 0.06)])
def test_a_sweep_needs_two_sizes_in_order(ends, evaluator, problem) -> None:
    with pytest.raises(OmpqError, match="smaller size first"):
        list(trace_front(evaluator, problem, *ends, 5))
    with pytest.raises(OmpqError, match="smaller size first"):
        space_evenly(*ends)


@pytest.fixture(scope="module")
def comparison(evaluator, outcomes) -> Comparison:
    return compare_candidates(
        evaluator, outcomes, [0.05, 0.07], random_trials=4, rank_trials=12, seed=0
    )


def test_a_comparison_is_fair_and_complete(
    comparison: Comparison, evaluator, outcomes, problem
) -> None:
    by_size = [[row for row in comparison.rows if row.budget_mb == size] for size in (0.05, 0.07)]
    for rows in by_size:
        assert all(row.size_mb <= row.budget_mb for row in rows)
        methods = {row.method for row in rows}
        assert {"fisher", "kl", "projection", "random, best of 4", "random, median of 4"} < methods
        assert any(method.startswith("uniform") for method in methods)
        chance = {row.method: row.kl for row in rows if row.method.startswith("random")}
        assert chance["random, best of 4"] <= chance["random, median of 4"]
    again = compare_candidates(
        evaluator, outcomes, [0.05], random_trials=4, rank_trials=2, seed=0
    ).rows
    assert again == by_size[0]
    (chosen,) = [row for row in by_size[0] if row.method == "auto"]
    assert chosen.passes == max(row.passes for row in again)
    tuning = OutcomeEvaluator(evaluator.probed, evaluator.probed.images)
    tried = list(try_candidates(evaluator, tuning, problem.at_size(0.05), random_trials=4, seed=0))
    assert chosen.bits == min(tried, key=lambda trial: trial.outcome.kl).assignment.bits
    rho = {one.method: one for one in comparison.correlations}
    assert "number of bits" in rho
    assert all(-1 <= one.low <= one.rho <= one.high <= 1 for one in rho.values())
    assert rho["kl"].passes > rho["fisher"].passes > rho["number of bits"].passes == 0


def test_a_comparison_is_printed_written_and_drawn(comparison, tmp_path, capsys) -> None:
    print_comparison(comparison)
    out = capsys.readouterr().out
    assert "at 0.0500 MB" in out
    assert "top-1" in out
    assert "rank correlation" in out
    write_comparison(comparison, tmp_path / "compare.json", {"arguments": {"model": "x"}})
    content = json.loads((tmp_path / "compare.json").read_text())
    assert len(content["rows"]) == len(comparison.rows)
    assert content["versions"]["torch"]
    draw_comparison(comparison, "a network", tmp_path / "compare.png")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_what_ranks_nothing_correlates_with_nothing(graph: NetworkGraph, outcomes) -> None:
    """One width alone: all allocations are one."""
    single = Problem.build(graph, SearchSettings("PTQ", size_mb=1.0, candidate_bits=(4,)))
    alone = SensitivityEvaluator(single, [Shard(torch.randn(8, 3, 16, 16), 8)])
    found = compare_candidates(alone, outcomes, [], random_trials=0, rank_trials=3, seed=0)
    assert {one.rho for one in found.correlations} == {0.0}
