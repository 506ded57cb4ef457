"""The integer program against independent exact methods, and what it promises on ties.

The truth here is computed without the solver's own arithmetic: coefficients as decimal numbers of
60 digits, choices enumerated or a dense table over every amount of the budget.
"""

from __future__ import annotations

import itertools
from decimal import Context, Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixed_bit.allocation.exact import branch
from mixed_bit.allocation.exact.knapsack import Knapsack
from mixed_bit.allocation.solve import Allocation, Budget, Program, solve
from mixed_bit.sensitivity.importance import compute_log_importance, compute_log_theta
from ompq.errors import OmpqError

BETAS = [1e-9, 1e-3, 1.0, 10.0, 100.0]
DIGITS = Context(prec=60, Emin=-99_999, Emax=99_999)


def compute_whole_values(program: Program) -> list[list[int]]:
    """Compute −sensitivity·exp(log_scale)·10^2500, whole but for the 60th digit."""
    scales = [Decimal(float(scale)).exp(DIGITS) for scale in program.log_scale]
    return [
        [int((Decimal(-float(p)) * scale).scaleb(2500, DIGITS)) for p in row]
        for row, scale in zip(program.sensitivity, scales, strict=True)
    ]


def build_program(
    params: np.ndarray,
    widths: tuple[int, ...],
    log_scale: np.ndarray,
    limits: dict[str, int],
    ops: np.ndarray | None = None,
) -> Program:
    line = np.array(widths)
    costs = {"size": params[:, None] * line}
    if ops is not None:
        costs["BOPs"] = ops[:, None] * line
    return Program(
        -np.tile(line.astype(float), (len(params), 1)),
        log_scale,
        widths,
        np.ones((len(params), len(widths)), dtype=bool),
        tuple(Budget(name, costs[name], limit) for name, limit in limits.items()),
        tuple(f"layer{i}" for i in range(len(params))),
    )


def choose_limit(costs: np.ndarray, widths: tuple[int, ...], share: float) -> int:
    """Choose the limit that lies at a share of the way from all-narrowest to all-widest."""
    low, high = int(costs.sum()) * widths[0], int(costs.sum()) * widths[-1]
    return low + int(share * (high - low))


def compute_worth(program: Program, found: Allocation) -> int:
    pairs = zip(compute_whole_values(program), found.bits, strict=True)
    return sum(row[program.widths.index(bits)] for row, bits in pairs)


def keeps_budgets(program: Program, found: Allocation) -> bool:
    choice = [program.widths.index(bits) for bits in found.bits]
    return all(budget.spent(choice) <= budget.limit for budget in program.budgets)


def enumerate_choices(program: Program) -> int | None:
    """Find the best worth among all choices."""
    values = compute_whole_values(program)
    worths = [
        sum(values[g][k] for g, k in enumerate(choice))
        for choice in itertools.product(*program.options())
        if all(budget.spent(choice) <= budget.limit for budget in program.budgets)
    ]
    return max(worths, default=None)


def tabulate_choices(program: Program) -> int:
    """Find the best worth under one budget, by a table with one entry for every amount spent."""
    values, (budget,) = compute_whole_values(program), program.budgets
    table: dict[int, int] = {0: 0}
    for row, costs in zip(values, budget.cost.tolist(), strict=True):
        longer: dict[int, int] = {}
        for spent, worth in table.items():
            for value, cost in zip(row, costs, strict=True):
                total = spent + cost
                if total <= budget.limit and longer.get(total, -1) < worth + value:
                    longer[total] = worth + value
        table = longer
    return max(table.values())


def assert_optimal(program: Program, truth: int) -> None:
    found = solve(program)
    assert found.optimal and keeps_budgets(program, found)
    # The solver's coefficients have 28 digits, the truth's 60.
    assert truth - compute_worth(program, found) <= abs(truth) // 10**24


@pytest.mark.parametrize("count", [16, 18, 32, 53])
@pytest.mark.parametrize("beta", BETAS)
def test_importances_of_a_network_against_a_table(count: int, beta: float) -> None:
    generator = np.random.default_rng(count)
    widths = (2, 3, 4) if count == 53 else (4, 5, 6, 7, 8)
    params = generator.integers(1, 10, count)
    gammas = generator.uniform(0.2, 0.8, count) * count
    log_scale = compute_log_importance(compute_log_theta(gammas, beta))
    limit = choose_limit(params, widths, generator.uniform(0.2, 0.8))
    program = build_program(params, widths, log_scale, {"size": limit})
    assert_optimal(program, tabulate_choices(program))


@settings(max_examples=150, derandomize=True)
@given(data=st.data())
def test_any_small_program_against_enumeration(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 5))
    widths = data.draw(st.sampled_from([(4, 8), (2, 3, 4), tuple(range(2, 9))]))
    wide = count if len(widths) < 5 else min(count, 4)
    numbers = st.lists(st.integers(1, 60), min_size=wide, max_size=wide)
    params, ops = np.array(data.draw(numbers)), np.array(data.draw(numbers))
    # Equal draws are exact ties; the smallest span is a near tie, the largest 40 orders.
    span = data.draw(st.sampled_from([0.0, 1e-12, 1e-9, 1e-3, 1.0, 92.0, 3000.0]))
    steps = data.draw(st.lists(st.integers(0, 16), min_size=wide, max_size=wide))
    log_scale = -span * np.array(steps) / 16
    limits = {"size": choose_limit(params, widths, data.draw(st.floats(0, 1)))}
    if data.draw(st.booleans()):
        limits["BOPs"] = choose_limit(ops, widths, data.draw(st.floats(0, 1)))
    program = build_program(params, widths, log_scale, limits, ops)
    truth = enumerate_choices(program)
    assert truth is not None
    assert_optimal(program, truth)
    relaxed = solve(program, "lp")
    assert keeps_budgets(program, relaxed)
    assert compute_worth(program, relaxed) <= compute_worth(program, solve(program))


@pytest.mark.slow
@pytest.mark.parametrize("beta", BETAS)
def test_a_thousand_groups_are_proven_and_no_width_can_be_raised(beta: float) -> None:
    generator = np.random.default_rng(2)
    widths = (4, 5, 6, 7, 8)
    params = generator.integers(1000, 1_000_000, 1000)
    log_scale = compute_log_importance(compute_log_theta(generator.uniform(5, 300, 1000), beta))
    program = build_program(params, widths, log_scale, {"size": choose_limit(params, widths, 0.5)})
    found = solve(program)
    assert found.optimal and keeps_budgets(program, found)
    room = program.budgets[0].limit - found.spent["size"]
    raisable = [p for p, bits in zip(params, found.bits, strict=True) if bits < 8]
    assert min(raisable) > room
    assert compute_worth(program, solve(program, "lp")) <= compute_worth(program, found)


@pytest.mark.parametrize("beta", BETAS)
def test_two_budgets_on_a_network_are_proven(beta: float) -> None:
    generator = np.random.default_rng(4)
    widths = (4, 5, 6, 7, 8)
    params = 576 * 2 ** generator.integers(0, 8, 48)
    ops = 10**5 * generator.integers(1, 40, 48)
    log_scale = compute_log_importance(compute_log_theta(generator.uniform(10, 40, 48), beta))
    limits = {"size": choose_limit(params, widths, 0.5), "BOPs": choose_limit(ops, widths, 0.5)}
    program = build_program(params, widths, log_scale, limits, ops)
    found = solve(program)
    assert found.optimal and keeps_budgets(program, found)
    alone = build_program(params, widths, log_scale, {"size": limits["size"]})
    assert compute_worth(program, solve(program, "lp")) <= compute_worth(program, found)
    assert compute_worth(program, found) <= compute_worth(alone, solve(alone))


def prove_unaided(program: Program, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return what the proof finds from the worst incumbent, without heuristics before it."""
    monkeypatch.setattr(branch, "exchange_pairs", lambda *_: None)
    monkeypatch.setattr(branch, "combine_roundings", lambda *_: [])
    monkeypatch.setattr(branch, "fill", lambda problem, choice, groups: choice)
    problem = Knapsack(
        compute_whole_values(program),
        [budget.cost.tolist() for budget in program.budgets],
        [budget.limit for budget in program.budgets],
        program.options(),
    )
    found, proven = branch.prove(problem, [options[0] for options in program.options()])
    assert proven and found is not None and problem.fits(found)
    return problem.value(found)


@pytest.mark.parametrize("span", [0.0, 1e-9, 1e-3, 1.0, 92.0, 3000.0])
@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_the_proof_alone_finds_the_optimum(
    span: float, budgets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bound that drops too much would otherwise hide behind a good incumbent."""
    for seed in range(8):
        generator = np.random.default_rng(seed)
        widths = [(2, 3, 4), (4, 8), (4, 5, 6, 7, 8)][seed % 3]
        count = {3: 7, 2: 10, 5: 5}[len(widths)]
        line = np.array(widths)
        rows = [generator.integers(1, 10**6, count) for _ in range(budgets)]
        shares = generator.uniform(0.2, 0.8, budgets)
        program = Program(
            -np.tile(line.astype(float), (count, 1)),
            -span * generator.uniform(0, 1, count),
            widths,
            np.ones((count, len(widths)), dtype=bool),
            tuple(
                Budget(str(j), row[:, None] * line, choose_limit(row, widths, share))
                for j, (row, share) in enumerate(zip(rows, shares, strict=True))
            ),
            tuple(map(str, range(count))),
        )
        assert prove_unaided(program, monkeypatch) == enumerate_choices(program), seed


@pytest.mark.parametrize("beta", [1e-9, 1e-3, 1.0, 100.0])
@pytest.mark.parametrize("count", [16, 30])
def test_the_proof_alone_finds_the_optimum_of_a_network(
    beta: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(count)
    params = generator.integers(1, 80, count)
    log_scale = compute_log_importance(
        compute_log_theta(generator.uniform(0.2, 0.8, count) * count, beta)
    )
    limit = choose_limit(params, (4, 5, 6, 7, 8), 0.45)
    program = build_program(params, (4, 5, 6, 7, 8), log_scale, {"size": limit})
    assert prove_unaided(program, monkeypatch) == tabulate_choices(program)


def test_without_a_budget_every_width_is_the_best() -> None:
    program = build_program(np.array([3, 4]), (4, 8), np.array([-1.0, -90.0]), {})
    assert solve(program).bits == solve(program, "lp").bits == (8, 8)


def test_the_tail_that_outweighs_a_small_difference_decides() -> None:
    """Settling the two large ones by themselves, then the rest, would lose the optimum."""
    log_scale = np.log(np.array([1.0 + 1e-9, 1.0, *[1e-9] * 6]))
    params = np.array([7, 1, *[1] * 6])
    program = build_program(params, (4, 8), log_scale, {"size": int(params.sum()) * 4 + 28})
    assert solve(program).bits == (4, 8, 8, 8, 8, 8, 8, 8)
    assert_optimal(program, tabulate_choices(program))


def test_alike_layers_give_later_ones_more_bits() -> None:
    params = np.array([5, 5, 5, 5])
    program = build_program(params, (2, 3, 4), np.zeros(4), {"size": 5 * 11})
    assert solve(program).bits == tuple(sorted(solve(program).bits))
    assert sum(solve(program).bits) == 11


def test_what_costs_no_value_is_spent() -> None:
    cost = np.array([[4, 8], [4, 8]])
    flat = Program(
        np.zeros((2, 2)),
        np.zeros(2),
        (4, 8),
        np.ones((2, 2), dtype=bool),
        (Budget("size", cost, 12),),
        ("a", "b"),
    )
    found = solve(flat)
    assert found.bits == (4, 8) and found.spent == {"size": 12.0} and found.optimal


def test_the_same_program_gives_the_same_answer() -> None:
    params = np.array([3, 5, 5, 7, 7, 7])
    program = build_program(params, (4, 5, 6), np.zeros(6), {"size": 177})
    assert len({solve(program).bits for _ in range(3)}) == 1


def test_every_infeasible_budget_is_named_with_its_least_and_the_widths() -> None:
    params, ops = np.array([10, 20]), np.array([5, 5])
    program = build_program(params, (4, 8), np.zeros(2), {"size": 100, "BOPs": 39}, ops)
    with pytest.raises(OmpqError) as refused:
        solve(program)
    text = str(refused.value)
    assert "smallest feasible size is 120.0000 , at 4 bits" in text.replace("  ", " ")
    assert "smallest feasible BOPs is 40.0000 , at 4 bits" in text.replace("  ", " ")
    assert "\n" not in text


@pytest.mark.parametrize("solver", ["ilp", "lp"])
def test_budgets_that_exclude_each_other_say_so(solver: str) -> None:
    """One budget is least at four bits, the other at eight: each can be kept, not both."""
    program = Program(
        np.array([[-4.0, -8.0]]),
        np.zeros(1),
        (4, 8),
        np.ones((1, 2), dtype=bool),
        (Budget("size", np.array([[4, 8]]), 5), Budget("latency", np.array([[9, 3]]), 5)),
        ("only",),
    )
    with pytest.raises(OmpqError, match=r"size 5\.0000 .*latency 5\.0000 .*kept together"):
        solve(program, solver)


def test_a_width_that_costs_less_and_is_worth_more_is_taken() -> None:
    """Costs need not grow with the width: hardware may be slower at odd ones."""
    program = Program(
        np.array([[-4.0, -5.0, -8.0], [-4.0, -5.0, -8.0]]),
        np.zeros(2),
        (4, 5, 8),
        np.ones((2, 3), dtype=bool),
        (Budget("latency", np.array([[3, 9, 4], [3, 9, 4]]), 7),),
        ("a", "b"),
    )
    assert sum(solve(program).bits) == 12 and solve(program).optimal


def test_values_beyond_the_range_of_floats_stay_in_order() -> None:
    log_scale = np.array([-3000.0, -2000.0, -1000.0])
    program = build_program(np.array([1, 1, 1]), (4, 8), log_scale, {"size": 16})
    assert solve(program).bits == (4, 4, 8)
