"""The allocations between two sizes: the Pareto front of size and sensitivity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from mixed_bit.allocation.program import Program
from mixed_bit.bit_search import SearchResult, measure_and_solve
from mixed_bit.comparison.candidates import choose_best
from mixed_bit.comparison.outcome import OutcomeEvaluator
from mixed_bit.feasibility import check_feasible
from mixed_bit.problem import Problem
from mixed_bit.sensitivity.evaluator import SensitivityEvaluator
from mixed_bit.settings import FRONT_POINTS, MEASURED_FRONT_POINTS, check_front_ends
from ompq.cost import BITS_PER_MB
from ompq.errors import OmpqError
from ompq.files import write_json
from ompq.plots import ACCENT, INK, figure

FORMAT = "ompq-sweep/1"


@dataclass(frozen=True)
class FrontPoint:
    """One allocation of the front.

    Attributes:
        result: The allocation, as the result of a search.
        value: Its sensitivity, or its measured divergence in nats.
        candidate: What found it.
    """

    result: SearchResult
    value: float
    candidate: str

    @property
    def size_mb(self) -> float:
        """Return the model size in MB (2²⁰ bytes)."""
        return self.result.assignment.size_mb


def trace_front(
    evaluator: SensitivityEvaluator,
    problem: Problem,
    low_mb: float,
    high_mb: float,
    points: int = FRONT_POINTS,
) -> Iterator[FrontPoint]:
    """Find the proven optima by one metric, from the largest size down.

    Each further budget is one bit below the size found last, so that no allocation of the front is
    left out, unless `points` evenly spaced budgets leave it out.

    Args:
        evaluator: Measures sensitivities.
        problem: Its metric is asked; its other budgets hold throughout.
        low_mb: The smallest size, MB.
        high_mb: The largest size, MB.
        points: Budgets to solve at the most; 0 for no limit.

    Raises:
        OmpqError: Not even the largest size is feasible, nothing lies between the two, or they are
            in the wrong order.
    """
    check_front_ends(low_mb, high_mb)
    # Measured once, and with it everything of the result but the widths.
    first = measure_and_solve(evaluator, problem.at_size(high_mb))
    problem = first.problem
    program = first.problem.build_program(first.sensitivity)
    # Relative to the largest scale: with β = 100 those of orthogonality vanish in a float64.
    program = replace(program, log_scale=first.sensitivity.relative_scale)
    limit, lowest = program.budgets[0].limit, int(low_mb * BITS_PER_MB)
    spacing = (limit - lowest) / points if points else 0.0
    result = first
    if first.assignment.size_mb < low_mb:
        raise OmpqError(
            f"`sweep` {low_mb} {high_mb}: no allocation lies between; the largest that fits has "
            f"{first.assignment.size_mb:.4f} MB; lower the first size, or widen `candidate_bits`"
        )
    while True:
        choice = program.choice(result.allocation)
        yield FrontPoint(result, program.total(choice), problem.settings.chosen_metric)
        found = program.budgets[0].spent(choice)
        limit = min(found - 1, int(limit - spacing))
        if limit < lowest:
            return
        try:
            allocation = problem.solve(_with_limit(program, limit))
        except OmpqError:
            return  # nothing smaller is feasible
        result = replace(
            first,
            problem=problem.at_size(limit / BITS_PER_MB),
            assignment=problem.assign(allocation),
            allocation=allocation,
        )


def measure_front(
    evaluator: SensitivityEvaluator,
    outcomes: OutcomeEvaluator,
    problem: Problem,
    sizes_mb: Sequence[float],
    *,
    seed: int,
) -> Iterator[FrontPoint]:
    """Find the candidate of least measured divergence at every size.

    Args:
        evaluator: Measures sensitivities.
        outcomes: Measures what an allocation does.
        problem: Candidate widths and other budgets.
        sizes_mb: Budgets, MB, in the order in which they are tried; see `space_evenly`.
        seed: Seed of random allocations.
    """
    check_feasible(problem.at_size(min(sizes_mb)))
    for size in sizes_mb:
        result, tried = choose_best(evaluator, outcomes, problem.at_size(size), seed=seed)
        winner = min(tried, key=lambda trial: trial.outcome.kl)
        yield FrontPoint(result, winner.outcome.kl, str(winner.candidate))


def space_evenly(low_mb: float, high_mb: float, points: int = MEASURED_FRONT_POINTS) -> list[float]:
    """Return evenly spaced sizes, the largest first, both ends included.

    Raises:
        OmpqError: The sizes are not positive and ascending.

    >>> space_evenly(1.0, 2.0, 3)
    [2.0, 1.5, 1.0]
    """
    check_front_ends(low_mb, high_mb)
    return [float(size) for size in np.linspace(high_mb, low_mb, max(points, 2))]


def find_knee(points: Sequence[FrontPoint]) -> FrontPoint:
    """Find the point farthest below the straight line between the ends of the front.

    Sizes and values are scaled to 0…1 first (Satopää et al., Kneedle, 2011).
    """
    sizes = np.array([point.size_mb for point in points])
    values = np.array([point.value for point in points])

    def scaled(x: np.ndarray) -> np.ndarray:
        width = x.max() - x.min()
        return (x - x.min()) / width if width > 0 else np.zeros_like(x)

    return points[int(np.argmin(scaled(sizes) + scaled(values)))]


def write_front(
    points: Sequence[FrontPoint], path: str | Path, details: dict[str, Any] | None = None
) -> None:
    """Write every allocation of the front as JSON, the smallest first."""
    knee = find_knee(points)
    rows = [
        {
            "model_size_mb": point.size_mb,
            "bops_g": point.result.assignment.bops_g,
            "value": point.value,
            "method": point.candidate,
            "optimal": point.result.allocation.optimal,
            "knee": point is knee,
            "bits": point.result.bits,
            "act_bits": list(point.result.allocation.act_bits) or None,
        }
        for point in reversed(points)
    ]
    write_json(path, {"format": FORMAT, **(details or {}), "points": rows})


def draw_front(points: Sequence[FrontPoint], title: str, path: str | Path) -> None:
    """Draw size against sensitivity (or divergence), the knee marked."""
    knee = find_knee(points)
    sizes, values = [p.size_mb for p in points], [p.value for p in points]
    with figure(path, 7.5, 4.8) as drawn:
        axes = drawn.subplots()
        axes.plot(sizes, values, "o-", color=ACCENT, ms=3, lw=1.2)
        axes.plot([knee.size_mb], [knee.value], "o", color=INK, ms=9, mfc="none", mew=1.8)
        axes.annotate(
            f"knee: {knee.size_mb:.3f} MB",
            (knee.size_mb, knee.value),
            xytext=(12, 12),
            textcoords="offset points",
            color=INK,
        )
        if min(values) > 0:
            axes.set_yscale("log")
        axes.set(title=title, xlabel="size, MB", ylabel=_label_values(points))
        axes.xaxis.set_major_locator(MaxNLocator(8))
        axes.grid(alpha=0.25)


def _label_values(points: Sequence[FrontPoint]) -> str:
    candidates = {point.candidate for point in points}
    if candidates == {points[0].result.settings.chosen_metric}:
        return f"sensitivity ({points[0].candidate})"
    return "measured output divergence, nats"


def _with_limit(program: Program, limit: int) -> Program:
    size, *others = program.budgets
    return replace(program, budgets=(replace(size, limit=limit), *others))
