"""The allocations between two sizes: the front that trades size for price."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from mixed_bit.methods import best
from mixed_bit.pricing import Pricer
from mixed_bit.program import Program
from mixed_bit.search import (
    SearchResult,
    check_feasible,
    price_and_solve,
    program_of,
    solve_program,
)
from mixed_bit.settings import SearchSettings
from mixed_bit.truth import Truth
from ompq.cost import BITS_PER_MB
from ompq.errors import OmpqError
from ompq.files import write_json
from ompq.plots import ACCENT, INK, figure

FORMAT = "ompq-sweep/1"
POINTS, AUTO_POINTS = 200, 10


@dataclass(frozen=True)
class Point:
    """One allocation of the front; `value` is its price, or its measured divergence."""

    result: SearchResult
    value: float
    method: str

    @property
    def size_mb(self) -> float:
        """Model size in MB (2²⁰ bytes)."""
        return self.result.assignment.size_mb


def sweep(
    pricer: Pricer, settings: SearchSettings, low_mb: float, high_mb: float, points: int
) -> Iterator[Point]:
    """Proven optima by the metric of `settings`, from the largest size down.

    Each further budget is one bit below the size found last, so that no allocation of the front is
    left out, unless `points` (0: no limit) evenly spaced budgets leave it out.

    Args:
        pricer: of the network.
        settings: with `size_mb` = `high_mb`; other budgets hold throughout.
        low_mb: the smallest size, MB.
        high_mb: the largest.
        points: budgets to solve at the most.

    Raises:
        OmpqError: not even the largest size is feasible, nothing lies between the two, or they are
            in the wrong order.
    """
    check_order(low_mb, high_mb)
    # Measured once, and with it everything of the result but the widths.
    first = price_and_solve(pricer, replace(settings, size_mb=high_mb))
    program = program_of(pricer, first.prices, first.settings)
    # Prices beside the largest scale: with β = 100 those of orthogonality vanish in a float64.
    program = replace(program, log_scale=first.prices.relative_scale)
    limit, lowest = program.budgets[0].limit, int(low_mb * BITS_PER_MB)
    spacing = (limit - lowest) / points if points else 0.0
    result = first
    if first.assignment.size_mb < low_mb:
        raise OmpqError(
            f"--sweep {low_mb} {high_mb}: no allocation lies between; the largest that fits has "
            f"{first.assignment.size_mb:.4f} MB"
        )
    while True:
        choice = program.choice(result.allocation)
        yield Point(result, program.total(choice), settings.metric)
        found = program.budgets[0].spent(choice)
        limit = min(found - 1, int(limit - spacing))
        if limit < lowest:
            return
        narrower = _with_limit(program, limit)
        try:
            assignment, allocation = solve_program(pricer, narrower, settings)
        except OmpqError:
            return  # nothing smaller is feasible
        chosen = replace(settings, size_mb=limit / BITS_PER_MB)
        result = replace(first, assignment=assignment, allocation=allocation, settings=chosen)


def auto_sweep(
    pricer: Pricer,
    truth: Truth,
    settings: SearchSettings,
    low_mb: float,
    high_mb: float,
    points: int,
    seed: int,
) -> Iterator[Point]:
    """At evenly spaced sizes, the allocation of least measured divergence among all methods."""
    check_order(low_mb, high_mb)
    check_feasible(pricer.graph.groups, replace(settings, size_mb=low_mb))
    for size in np.linspace(high_mb, low_mb, max(points, 2)):
        result, tried = best(pricer, truth, replace(settings, size_mb=float(size)), seed=seed)
        winner = min(tried, key=lambda trial: trial.outcome.kl)
        yield Point(result, winner.outcome.kl, str(winner.method))


def knee(points: Sequence[Point]) -> Point:
    """The point farthest below the straight line between the ends (Satopää et al., Kneedle, 2011).

    Sizes and values are scaled to 0…1 first.
    """
    sizes = np.array([point.size_mb for point in points])
    values = np.array([point.value for point in points])

    def scaled(x: np.ndarray) -> np.ndarray:
        width = x.max() - x.min()
        return (x - x.min()) / width if width > 0 else np.zeros_like(x)

    return points[int(np.argmin(scaled(sizes) + scaled(values)))]


def write_sweep(
    points: Sequence[Point], path: str | Path, details: dict[str, Any] | None = None
) -> None:
    """Every allocation of the front as JSON, the smallest first."""
    marked = knee(points)
    rows = [
        {
            "model_size_mb": point.size_mb,
            "bops_g": point.result.assignment.bops_g,
            "value": point.value,
            "method": point.method,
            "optimal": point.result.allocation.optimal,
            "knee": point is marked,
            "bits": point.result.assignment.bits,
            "act_bits": list(point.result.allocation.act_bits) or None,
        }
        for point in reversed(points)
    ]
    write_json(path, {"format": FORMAT, **(details or {}), "points": rows})


def draw_sweep(points: Sequence[Point], title: str, path: str | Path) -> None:
    """Size against price (or divergence), the knee marked."""
    marked = knee(points)
    sizes, values = [p.size_mb for p in points], [p.value for p in points]
    with figure(path, 7.5, 4.8) as drawn:
        axes = drawn.subplots()
        axes.plot(sizes, values, "o-", color=ACCENT, ms=3, lw=1.2)
        axes.plot([marked.size_mb], [marked.value], "o", color=INK, ms=9, mfc="none", mew=1.8)
        axes.annotate(
            f"knee: {marked.size_mb:.3f} MB",
            (marked.size_mb, marked.value),
            xytext=(12, 12),
            textcoords="offset points",
            color=INK,
        )
        if min(values) > 0:
            axes.set_yscale("log")
        axes.set(title=title, xlabel="size, MB", ylabel=_label(points))
        axes.xaxis.set_major_locator(MaxNLocator(8))
        axes.grid(alpha=0.25)


def _label(points: Sequence[Point]) -> str:
    methods = {point.method for point in points}
    if methods == {points[0].result.settings.metric}:
        return f"price ({points[0].method})"
    return "measured output divergence, nats"


def check_order(low_mb: float, high_mb: float) -> None:
    """Refuse ends of a sweep that are not positive and ascending.

    Raises:
        OmpqError: they are not.
    """
    if not 0 < low_mb < high_mb:
        raise OmpqError(f"--sweep {low_mb} {high_mb}: give the smaller size first, both positive")


def _with_limit(program: Program, limit: int) -> Program:
    size, *others = program.budgets
    return replace(program, budgets=(replace(size, limit=limit), *others))
