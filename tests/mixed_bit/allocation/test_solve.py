"""The solvers against brute force in whole numbers, and against the published lists."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torchvision

import bit_config
from mixed_bit.allocation.program import compute_exact_values
from mixed_bit.allocation.solve import Budget, Program, solve
from mixed_bit.problem import Problem
from mixed_bit.sensitivity import orm
from mixed_bit.sensitivity.importance import compute_log_importance, compute_log_theta
from mixed_bit.settings import SearchSettings
from ompq.errors import OmpqError
from ompq.graph import trace

WIDTHS = [(4, 8), (2, 3, 4), (4, 5, 6, 7, 8)]


def search_by_brute_force(program: Program) -> int | None:
    """Find the best value among all choices that keep the budgets, exactly."""
    values = compute_exact_values(program)
    best = None
    for choice in itertools.product(*program.options()):
        if all(budget.spent(choice) <= budget.limit for budget in program.budgets):
            value = sum(values[g][k] for g, k in enumerate(choice))
            best = value if best is None else max(best, value)
    return best


def compute_value(program: Program, bits: tuple[int, ...]) -> int:
    values = compute_exact_values(program)
    return sum(values[g][program.widths.index(width)] for g, width in enumerate(bits))


def draw_importances(kind: str, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw log coefficients: 40 decades, near ties, exact ties, or far below any float."""
    if kind == "decades":
        return generator.uniform(-40 * np.log(10), 0, count)
    if kind == "near ties":
        return -1e-9 * generator.uniform(1, 10, count)
    if kind == "ties":
        return np.zeros(count)
    return -100.0 * generator.uniform(1, 40, count)


def draw_program(kind: str, seed: int) -> Program:
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 7))
    widths = WIDTHS[seed % 3]
    line = np.array(widths)
    few_sizes = generator.choice([3, 7, 12], count)
    params = few_sizes if seed % 2 else generator.integers(1, 200, count)
    ops = generator.integers(1, 200, count)
    costs = [params[:, None] * line] + ([ops[:, None] * line * 8] if seed % 4 == 0 else [])
    budgets = []
    for index, cost in enumerate(costs):
        low, high = int(cost[:, 0].sum()), int(cost[:, -1].sum())
        limit = low + int(generator.uniform(0, 1) * (high - low))
        budgets.append(Budget(f"budget {index}", cost, limit))
    allowed = np.ones((count, len(widths)), dtype=bool)
    sensitivity = -np.tile(line.astype(float), (count, 1))
    if kind == "any sensitivities":
        decades = 10.0 ** generator.uniform(-40, 0, (count, 1))
        sensitivity = generator.exponential(1, (count, len(widths))) * decades
        kind = "ties"
    return Program(
        sensitivity,
        draw_importances(kind, count, generator),
        widths,
        allowed,
        tuple(budgets),
        tuple(f"g{i}" for i in range(count)),
    )


@pytest.mark.parametrize("kind", ["decades", "near ties", "ties", "far", "any sensitivities"])
def test_the_optimum_is_that_of_brute_force(kind: str) -> None:
    for seed in range(60):
        program = draw_program(kind, seed)
        found = solve(program)
        assert found.optimal
        choice = [program.widths.index(width) for width in found.bits]
        assert all(budget.spent(choice) <= budget.limit for budget in program.budgets)
        assert compute_value(program, found.bits) == search_by_brute_force(program), (kind, seed)
        relaxed = solve(program, "lp")
        choice = [program.widths.index(width) for width in relaxed.bits]
        assert all(budget.spent(choice) <= budget.limit for budget in program.budgets)
        assert compute_value(program, relaxed.bits) <= compute_value(program, found.bits)


def test_pins_are_kept() -> None:
    program = draw_program("decades", 5)
    allowed = program.allowed.copy()
    allowed[0] = False
    allowed[0, 0] = True
    pinned = Program(
        program.sensitivity,
        program.log_scale,
        program.widths,
        allowed,
        program.budgets,
        program.names,
    )
    assert solve(pinned).bits[0] == program.widths[0]
    assert compute_value(pinned, solve(pinned).bits) == search_by_brute_force(pinned)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [1.0, 10.0, 100.0])
def test_a_thousand_groups_are_proven(beta: float) -> None:
    generator = np.random.default_rng(0)
    widths = (4, 5, 6, 7, 8)
    cost = generator.integers(1000, 1_000_000, 1000)[:, None] * np.array(widths)
    gammas = generator.uniform(5, 300, 1000)
    program = Program(
        -np.tile(np.array(widths, dtype=float), (1000, 1)),
        compute_log_importance(compute_log_theta(gammas, beta)),
        widths,
        np.ones((1000, 5), dtype=bool),
        (Budget("size", cost, int(cost[:, 2].sum())),),
        tuple(map(str, range(1000))),
    )
    found = solve(program)
    assert found.optimal
    assert compute_value(program, found.bits) >= compute_value(program, solve(program, "lp").bits)


@pytest.mark.parametrize(
    ("network", "rounding"), [("resnet18", "fill"), ("mobilenetv2", "nearest")]
)
def test_projection_gives_the_published_lists(network: str, rounding: str) -> None:
    names = {"mobilenetv2": "mobilenet_v2"}
    built = getattr(torchvision.models, names.get(network, network))()
    graph = trace(built, (3, 64, 64))
    rows = [row for row in bit_config.PUBLISHED.values() if row.network == network]
    # MobileNetV2's 1.3 is the one published PTQ list that the projection does not give.
    rows = [row for row in rows if row.quant_type == "PTQ" and row.name != "mobilenetv2_1.3"]
    assert len(rows) == {"resnet18": 6, "mobilenetv2": 3}[network]
    for row in rows:
        problem = Problem.build(graph, SearchSettings("PTQ", size_mb=row.size_mb))
        even = orm.measure(np.zeros(len(graph.groups)), problem.widths)
        found = solve(problem.build_program(even), "projection", rounding)
        assert found.bits == row.bits, row.name
        size = found.spent["size"]
        assert ("exceeds" in found.note) == (size > row.size_mb)


def test_infeasible_budgets_name_the_smallest_feasible_value() -> None:
    cost = np.array([[20, 40], [30, 60]])
    program = Program(
        -np.ones((2, 2)) * [[4, 8]],
        np.zeros(2),
        (4, 8),
        np.ones((2, 2), dtype=bool),
        (Budget("size", cost, 57, constant=8, unit="MB", per_unit=10),),
        ("a", "b"),
    )
    with pytest.raises(OmpqError, match=r"smallest feasible size is 5\.8000 MB"):
        solve(program)


def test_sensitivities_that_are_not_finite_name_the_group() -> None:
    with pytest.raises(OmpqError, match="sensitivity of b is not finite"):
        Program(
            np.array([[1.0, 0.0], [np.nan, 0.0]]),
            np.zeros(2),
            (4, 8),
            np.ones((2, 2), dtype=bool),
            (),
            ("a", "b"),
        )
