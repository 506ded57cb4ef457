"""Groups that read one value agree on its width, and the optimum stays proven."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixed_bit.allocation import shared_activations
from mixed_bit.allocation.program import Budget, Program
from mixed_bit.allocation.shared_activations import solve_with_shared_activations
from ompq.errors import OmpqError

WIDTHS, ACTS = (2, 4), (4, 6, 8)
COLUMNS = list(itertools.product(WIDTHS, ACTS))


def draw_program(seed: int, count: int, share: float) -> Program:
    generator = np.random.default_rng(seed)
    ops = generator.integers(1, 50, count)[:, None] * np.prod(COLUMNS, axis=1)
    low, high = int(ops.min(axis=1).sum()), int(ops.max(axis=1).sum())
    return Program(
        sensitivity=generator.normal(size=(count, len(COLUMNS))),
        log_scale=-40.0 * generator.integers(0, 3, count),
        widths=tuple(width for width, _ in COLUMNS),
        allowed=np.ones(ops.shape, dtype=bool),
        budgets=(Budget("BOPs", ops, low + int(share * (high - low))),),
        names=tuple(f"layer{i}" for i in range(count)),
        act_widths=tuple(act for _, act in COLUMNS),
    )


def agrees(act_bits: tuple[int, ...], readers: list[tuple[int, ...]]) -> bool:
    return all(len({act_bits[group] for group in groups}) == 1 for groups in readers)


@settings(max_examples=60, derandomize=True)
@given(
    seed=st.integers(0, 2**32), share=st.floats(0, 1),
    readers=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True), max_size=3),
)  # fmt: skip
def test_against_enumeration(seed: int, share: float, readers: list[list[int]]) -> None:
    program = draw_program(seed, 4, share)
    values = [tuple(groups) for groups in readers]
    found = solve_with_shared_activations(program, values, "ilp", "fill")
    assert found.optimal
    assert agrees(found.act_bits, values)
    truth = min(
        program.total(choice)
        for choice in itertools.product(range(len(COLUMNS)), repeat=4)
        if program.budgets[0].spent(choice) <= program.budgets[0].limit
        and agrees(tuple(program.act_widths[k] for k in choice), values)
    )
    assert found.objective == pytest.approx(truth, rel=1e-12, abs=1e-12)


def test_beyond_the_limit_it_agrees_without_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    program = draw_program(1, 12, 0.4)
    pairs = [(group, group + 1) for group in range(0, 12, 2)]
    proven = solve_with_shared_activations(program, pairs, "ilp", "fill")
    monkeypatch.setattr(shared_activations, "_LIMIT", 3)
    hasty = solve_with_shared_activations(program, pairs, "ilp", "fill")
    assert proven.optimal
    assert not hasty.optimal
    assert agrees(hasty.act_bits, pairs)
    assert program.budgets[0].spent(program.choice(hasty)) <= program.budgets[0].limit
    assert proven.objective <= hasty.objective


def test_a_cluster_that_no_width_fits_is_told() -> None:
    program = draw_program(0, 2, 1.0)
    program.allowed[0, [act != 4 for _, act in COLUMNS]] = False
    program.allowed[1, [act == 4 for _, act in COLUMNS]] = False
    with pytest.raises(OmpqError, match="agree"):
        solve_with_shared_activations(program, [(0, 1)], "ilp", "fill")
