"""The memory of activations as a budget, beside plain enumeration of the widths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mixed_bit import SearchSettings, build_bit_config, search
from mixed_bit.allocation.activation_memory import find_undominated
from mixed_bit.allocation.program import Budget, Program
from mixed_bit.allocation.solve import solve
from mixed_bit.feasibility import check_feasible
from mixed_bit.problem import Problem
from mixed_bit.sensitivity.base import Sensitivity
from ompq.activation_memory import measure_peak
from ompq.errors import OmpqError
from ompq.graph import NetworkGraph, trace
from ompq.zoo import load_network


class Small(nn.Module):
    """Four convolutions, a residual sum and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 4, 3, padding=1)
        self.d = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.last = nn.Linear(4 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = torch.relu(self.c(torch.relu(self.b(x))) + x)
        return self.last(torch.relu(self.d(x)).flatten(1))


@pytest.fixture(scope="module")
def graph() -> NetworkGraph:
    torch.manual_seed(0)
    return trace(Small().eval(), (3, 8, 8))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def ask(**options) -> SearchSettings:
    return SearchSettings("PTQ", metric="sqnr", candidate_bits=(4,), **options)


def test_one_activation_width_is_kept_or_refused_with_its_floor(graph, images) -> None:
    peak = search(graph, images, ask(size_mb=1.0))
    kb = measure_peak(graph, peak.assignment).kb
    kept = search(graph, images, ask(act_memory_kb=kb))
    assert kept.bits == peak.bits
    assert kept.allocation.spent == {"activation memory": kb}
    with pytest.raises(OmpqError) as refused:
        search(graph, images, ask(act_memory_kb=kb - 0.001))
    assert f"{kb:.4f}" in str(refused.value)
    config = build_bit_config(kept, "small").to_json()
    assert config["act_memory_kb"] == kb
    assert config["budget"]["act_memory_kb"] == kb
    assert config["act_memory_step"] in ("b", "c", "add")


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8])
def test_chosen_widths_against_enumeration(share: float, graph, images) -> None:
    acts = (2, 4, 8)
    free = search(graph, images, ask(size_mb=1.0, bops_g=9.0, candidate_act_bits=acts))
    widest = measure_peak(graph, free.assignment).kb
    problem = Problem.build(graph, ask(act_memory_kb=widest, candidate_act_bits=acts))
    generator = np.random.default_rng(int(10 * share))
    count = len(problem.listed)
    table = np.sort(generator.random((count, len(problem.act_widths))), axis=1)[:, ::-1].copy()
    sensitivity = Sensitivity(np.zeros((count, 1)), table, np.zeros(count), 0.0)
    allowed = [
        [act for act in problem.act_widths if problem._allows(group, 4, act)]
        for group in problem.listed
    ]
    known = []
    for acts_of_groups in itertools.product(*allowed):
        agree = all(len({acts_of_groups[g] for g in groups}) == 1 for groups in problem.readers)
        if agree:
            program = problem.build_program(sensitivity)
            choice = [program.act_widths.index(act) for act in acts_of_groups]
            allocation = program.allocation(choice, "all")
            kb = measure_peak(graph, problem.assign(allocation)).kb
            known.append((kb, allocation.objective))
    least = min(kb for kb, _ in known)
    limit = least + share * (widest - least)
    asked = Problem.build(graph, ask(act_memory_kb=limit, candidate_act_bits=acts))
    found = asked.solve(asked.build_program(sensitivity))
    assert found.optimal
    kb = measure_peak(graph, asked.assign(found)).kb
    assert kb <= limit
    # The budgets count what the schedule counts.
    assert found.spent["activation memory"] == kb
    best = min(value for kb, value in known if kb <= limit)
    assert found.objective == pytest.approx(best)
    below = Problem.build(graph, ask(act_memory_kb=least - 0.001, candidate_act_bits=acts))
    with pytest.raises(OmpqError, match=f"{least:.4f}"):
        check_feasible(below)


@settings(max_examples=60, derandomize=True)
@given(seed=st.integers(0, 2**32), share=st.floats(0, 1))
def test_many_steps_against_enumeration(seed: int, share: float) -> None:
    """A size and seven steps at once, some of which never bind."""
    generator = np.random.default_rng(seed)
    count, widths = 5, (2, 4, 8)
    params = generator.integers(1, 30, count)
    size = params[:, None] * np.array(widths)
    steps = generator.integers(0, 20, (7, count)) * (generator.random((7, count)) < 0.5)
    costs = [size, *(row[:, None] * np.array(widths) for row in steps)]
    limits = [
        int(cost[:, 0].sum() + share * (cost[:, -1].sum() - cost[:, 0].sum())) for cost in costs
    ]
    values = generator.random((count, 3))
    program = Program(
        -values,
        np.zeros(count),
        widths,
        np.ones((count, 3), dtype=bool),
        tuple(
            Budget(f"b{i}", cost, limit, place="step" if i else "")
            for i, (cost, limit) in enumerate(zip(costs, limits, strict=True))
        ),
        tuple("abcde"),
    )
    fitting = [
        -values[range(count), list(choice)].sum()
        for choice in itertools.product(range(3), repeat=count)
        if all(
            sum(row[k] for row, k in zip(cost, choice, strict=True)) <= limit
            for cost, limit in zip(costs, limits, strict=True)
        )
    ]
    found = solve(program)
    assert found.optimal
    assert found.objective == pytest.approx(min(fitting))


@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=12))
def test_every_row_is_dominated_by_one_that_is_kept(rows: list[list[int]]) -> None:
    table = np.array(rows)
    kept = find_undominated(table)
    for row in table:
        assert any((table[index] >= row).all() for index in kept)
    for one, other in itertools.permutations(kept, 2):
        assert not (table[one] >= table[other]).all()


def test_memory_beside_size_on_a_real_network() -> None:
    torch.manual_seed(0)
    network = load_network("mobilenet_v2").module
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    asked = SearchSettings(
        "PTQ", size_mb=1.2, act_memory_kb=20.0, candidate_act_bits=(4, 6, 8), metric="sqnr"
    )
    found = search(network, images, asked)
    assert found.allocation.optimal
    peak = measure_peak(found.problem.graph, found.assignment)
    assert 15 < peak.kb == found.allocation.spent["activation memory"] <= 20.0
    assert found.assignment.size_mb <= 1.2
    assert len(set(found.allocation.act_bits)) > 1


def test_activation_widths_need_a_budget_that_they_count_in() -> None:
    with pytest.raises(OmpqError, match="set `bops_g` or `act_memory_kb`"):
        ask(size_mb=1.0, candidate_act_bits=(4, 8))
    for value in (0, -1.0, float("nan"), "12"):
        with pytest.raises(OmpqError, match=r"`act_memory_kb` .* a number above 0"):
            ask(act_memory_kb=value)
