"""Candidates beside each other at equal size: what they predict, and what happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from scipy.stats import spearmanr

from mixed_bit.comparison.candidates import (
    Candidate,
    Trial,
    count_forward_passes,
    list_metric_candidates,
    try_candidates,
)
from mixed_bit.comparison.outcome import OutcomeEvaluator
from mixed_bit.comparison.random_baseline import draw_columns
from mixed_bit.problem import Problem
from mixed_bit.sensitivity import Sensitivity
from mixed_bit.sensitivity.evaluator import SensitivityEvaluator
from ompq.files import write_json
from ompq.plots import INK, SOFT, figure
from ompq.runtime import progress, versions

FORMAT = "ompq-comparison/1"
_RESAMPLES = 1000
# A candidate that measures nothing: every bit is worth one.
_BIT_COUNT = "number of bits"
# How the picture draws what is no metric.
_LOOKS = {
    "auto": ("*-", INK),
    "projection": ("o--", INK),
    "uniform": ("s--", SOFT),
    "random, best": ("^--", SOFT),
    "random, median": ("v:", SOFT),
}


@dataclass(frozen=True)
class ComparisonRow:
    """What one candidate makes of one budget.

    Attributes:
        method: The candidate, or the baseline.
        budget_mb: Size budget, MB.
        size_mb: Size of the allocation, MB.
        kl: Divergence from the float network's output per image, nats.
        agreement: How often both networks name one class, per cent.
        top1: Accuracy, per cent; None without labels.
        passes: Work of the search, in forward passes of the calibration images.
        bits: The bit list.
    """

    method: str
    budget_mb: float
    size_mb: float
    kl: float
    agreement: float
    top1: float | None
    passes: float
    bits: list[int]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of predicted and measured cost, with its 95 % interval.

    The interval is that of the bootstrap (percentiles over resampled allocations).
    """

    method: str
    rho: float
    low: float
    high: float
    passes: float


@dataclass(frozen=True)
class Comparison:
    """Rows for every budget and candidate, and how well the metrics rank random allocations.

    `notes` are what a reader should know of the images and the network.
    """

    rows: list[ComparisonRow]
    correlations: list[Correlation]
    top1: float | None
    random_trials: int
    rank_trials: int
    notes: tuple[str, ...] = ()


def compare_candidates(
    evaluator: SensitivityEvaluator,
    outcomes: OutcomeEvaluator,
    sizes_mb: Sequence[float],
    *,
    random_trials: int,
    rank_trials: int,
    seed: int,
) -> Comparison:
    """Try every candidate at every size, and correlate what metrics predict with what happens.

    Args:
        evaluator: Measures sensitivities, on calibration images; its problem's size budget gives
            way to the sizes.
        outcomes: Measures what allocations do, best on other images.
        sizes_mb: Budgets, MB.
        random_trials: Random allocations at every size.
        rank_trials: Random allocations of any size that the metrics rank.
        seed: Seed of the random allocations.
    """
    tuning = OutcomeEvaluator(evaluator.probed, evaluator.probed.images)
    rows = [
        row
        for size in progress(sizes_mb, "budgets")
        for row in compare_at(
            evaluator,
            outcomes,
            tuning,
            evaluator.problem.at_size(size),
            random_trials=random_trials,
            seed=seed,
        )
    ]
    ranks = correlate_ranks(evaluator, outcomes, rank_trials, seed)
    return Comparison(rows, ranks, outcomes.top1, random_trials, rank_trials)


def compare_at(
    evaluator: SensitivityEvaluator,
    outcomes: OutcomeEvaluator,
    tuning: OutcomeEvaluator,
    problem: Problem,
    *,
    random_trials: int,
    seed: int,
) -> list[ComparisonRow]:
    """Try every candidate at one size, beside uniform widths and random allocations.

    Args:
        evaluator: Measures sensitivities.
        outcomes: Measures what allocations do.
        tuning: Measures it on the calibration images: by these a search would choose.
        problem: Budgets and candidate widths.
        random_trials: Random allocations, of which the best and the median are kept.
        seed: Seed of these.

    Returns:
        One row per candidate; `auto`, the candidate that `tuning` chooses; the best and the median
        random allocation; the widest uniform width that fits, if one does.
    """
    tried = list(
        try_candidates(evaluator, outcomes, problem, random_trials=random_trials, seed=seed)
    )
    named = [trial for trial in tried if trial.candidate.number is None]
    rows = [_build_row(evaluator, problem, str(trial.candidate), trial) for trial in named]
    chosen = min(tried, key=lambda trial: tuning.measure(trial.assignment).kl)
    passes = count_forward_passes(evaluator, len(tried))
    rows.append(replace(_build_row(evaluator, problem, "auto", chosen), passes=passes))
    drawn = [trial for trial in tried if trial.candidate.number is not None]
    drawn.sort(key=lambda trial: trial.outcome.kl)
    if drawn:
        count = len(drawn)
        best, median = drawn[0], drawn[count // 2]
        rows.append(_build_row(evaluator, problem, f"random, best of {count}", best))
        rows.append(_build_row(evaluator, problem, f"random, median of {count}", median))
    even = _try_uniform(evaluator, outcomes, problem)
    if even is not None:
        rows.append(_build_row(evaluator, problem, str(even.candidate), even))
    return rows


def correlate_ranks(
    evaluator: SensitivityEvaluator, outcomes: OutcomeEvaluator, count: int, seed: int
) -> list[Correlation]:
    """Correlate what every metric, and the plain number of bits, predicts with what happens.

    Over `count` random allocations of any size.
    """
    problem = evaluator.problem
    program = problem.build_program(evaluator.uniform_sensitivity())
    generator = np.random.default_rng(seed)
    choices = [draw_columns(program, generator) for _ in range(count)]
    drawn = [problem.assign(program.allocation(choice, "random")) for choice in choices]
    measured = np.array([outcomes.measure(assignment).kl for assignment in drawn])
    found = []
    for candidate in [*list_metric_candidates(), Candidate(_BIT_COUNT)]:
        sensitivity = _sensitivity_of(evaluator, candidate)
        predicting = replace(
            program,
            sensitivity=sensitivity.by_column(),
            log_scale=sensitivity.relative_scale,
        )
        predicted = np.array([predicting.total(choice) for choice in choices])
        rho, low, high = _spearman(predicted, measured, generator)
        passes = sensitivity.forward_passes if candidate.is_metric else 0.0
        found.append(Correlation(str(candidate), rho, low, high, passes))
    return found


def _try_uniform(
    evaluator: SensitivityEvaluator, outcomes: OutcomeEvaluator, problem: Problem
) -> Trial | None:
    """Try the widest width for all that keeps the budgets and the pins, if there is one."""
    program = problem.build_program(evaluator.uniform_sensitivity())
    for column in reversed(range(len(program.widths))):
        choice = [
            column if allowed[column] else int(np.flatnonzero(allowed)[0])
            for allowed in program.allowed
        ]
        if all(budget.spent(choice) <= budget.limit for budget in program.budgets):
            allocation = program.allocation(choice, "uniform")
            assignment = problem.assign(allocation)
            candidate = Candidate(f"uniform {program.widths[column]}")
            return Trial(candidate, assignment, allocation, outcomes.measure(assignment))
    return None


def _build_row(
    evaluator: SensitivityEvaluator, problem: Problem, name: str, trial: Trial
) -> ComparisonRow:
    passes = 0.0
    if trial.candidate.is_metric:
        passes = _sensitivity_of(evaluator, trial.candidate).forward_passes
    return ComparisonRow(
        method=name,
        budget_mb=float(problem.settings.size_mb or 0.0),
        size_mb=trial.assignment.size_mb,
        kl=trial.outcome.kl,
        agreement=trial.outcome.agreement,
        top1=trial.outcome.top1,
        passes=passes,
        bits=trial.assignment.bits,
    )


def _sensitivity_of(evaluator: SensitivityEvaluator, candidate: Candidate) -> Sensitivity:
    if candidate.name == _BIT_COUNT:
        return evaluator.uniform_sensitivity()
    return evaluator.sensitivity(candidate.name, candidate.beta or 0.0)


def _spearman(
    predicted: NDArray[np.float64], measured: NDArray[np.float64], generator: np.random.Generator
) -> tuple[float, float, float]:
    def rho(index: NDArray[np.intp]) -> float:
        a, b = predicted[index], measured[index]
        if np.ptp(a) == 0 or np.ptp(b) == 0:
            return 0.0  # all alike rank nothing
        return float(spearmanr(a, b).statistic)

    everything = np.arange(len(measured))
    drawn = generator.integers(len(measured), size=(_RESAMPLES, len(measured)))
    low, high = np.percentile([rho(index) for index in drawn], [2.5, 97.5])
    return rho(everything), float(low), float(high)


def write_comparison(
    comparison: Comparison, path: str | Path, details: dict[str, Any] | None = None
) -> None:
    """Write rows and correlations as JSON."""
    content = {**asdict(comparison), "versions": versions()}
    write_json(path, {"format": FORMAT, **(details or {}), **content})


def print_comparison(comparison: Comparison) -> None:
    """Print a table per budget, then the correlations."""
    has_labels = comparison.top1 is not None
    for budget in dict.fromkeys(row.budget_mb for row in comparison.rows):
        rows = [row for row in comparison.rows if row.budget_mb == budget]
        print(f"\nat {budget:.4f} MB")
        top1 = f" {'top-1 %':>8}" if has_labels else ""
        print(f"{'method':<22} {'size MB':>9} {'KL nats':>10} {'agree %':>8}{top1} {'passes':>7}")
        for row in sorted(rows, key=lambda row: row.kl):
            accuracy = f" {row.top1:>8.2f}" if row.top1 is not None else ""
            print(
                f"{row.method:<22} {row.size_mb:>9.4f} {row.kl:>10.3g} {row.agreement:>8.2f}"
                f"{accuracy} {row.passes:>7.1f}"
            )
    if has_labels:
        print(f"float: top-1 {comparison.top1:.2f} %")
    print(f"\nrank correlation with the measured KL over {comparison.rank_trials} allocations")
    print(f"{'method':<22} {'rho':>6}  {'95 % interval':<16} {'passes':>7}")
    for one in sorted(comparison.correlations, key=lambda one: -one.rho):
        interval = f"{one.low:.2f} to {one.high:.2f}"
        print(f"{one.method:<22} {one.rho:>6.2f}  {interval:<16} {one.passes:>7.1f}")
    for note in comparison.notes:
        print(f"note: {note}")


def draw_comparison(comparison: Comparison, title: str, path: str | Path) -> None:
    """Draw size against divergence, one line per candidate."""
    methods = list(dict.fromkeys(_family(row.method) for row in comparison.rows))
    colours = colormaps["tab10"]
    with figure(path, 8.5, 5.4) as drawn:
        axes = drawn.subplots()
        for index, method in enumerate(methods):
            rows = [row for row in comparison.rows if _family(row.method) == method]
            rows.sort(key=lambda row: row.size_mb)
            style, colour = _LOOKS.get(method.split(" of ")[0], ("o-", colours(index % 10)))
            axes.plot(
                [row.size_mb for row in rows],
                [max(row.kl, 1e-12) for row in rows],
                style,
                color=colour,
                alpha=0.8,
                ms=4,
                lw=1.3,
                label=method,
            )
        axes.set_yscale("log")
        axes.set(title=title, xlabel="size, MB", ylabel="KL(float ‖ rounded), nats")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, ncols=2)


def _family(method: str) -> str:
    """Name the line of a row; uniform widths make one."""
    return "uniform" if method.startswith("uniform") else method
