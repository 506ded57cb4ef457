"""Ways to allocate bits beside each other: what they predict, and what happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from scipy.stats import spearmanr

from mixed_bit.allocate import Allocation
from mixed_bit.chance import scattered
from mixed_bit.methods import Method, Trial, measuring_methods, search_passes, trials
from mixed_bit.metrics import Prices
from mixed_bit.pricing import Pricer
from mixed_bit.search import assignment_of, program_of
from mixed_bit.settings import SearchSettings
from mixed_bit.truth import Outcome, Truth
from ompq.bitconfig import Assignment
from ompq.files import write_json
from ompq.plots import INK, SOFT, figure
from ompq.runtime import progress, versions

FORMAT = "ompq-comparison/1"
_RESAMPLES = 1000
# How the picture draws what is no metric.
_LOOKS = {
    "auto": ("*-", INK),
    "projection": ("o--", INK),
    "uniform": ("s--", SOFT),
    "random, best": ("^--", SOFT),
    "random, median": ("v:", SOFT),
}


@dataclass(frozen=True)
class Row:
    """What one way makes of one budget: sizes in MB, divergence in nats, shares in per cent.

    `passes` is the work of the search in forward passes of the calibration images.
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
    """Rows for every budget and method, and how well the methods rank random allocations.

    `notes` are what a reader should know of the images and the network.
    """

    rows: list[Row]
    correlations: list[Correlation]
    top1: float | None
    random_trials: int
    rank_trials: int
    notes: tuple[str, ...] = ()


def compare(
    pricer: Pricer,
    truth: Truth,
    settings: SearchSettings,
    sizes_mb: Sequence[float],
    *,
    random_trials: int,
    rank_trials: int,
    seed: int,
) -> Comparison:
    """All methods at all sizes, and their rank correlations.

    Args:
        pricer: measures the prices, on calibration images.
        truth: measures the outcomes, best on other images.
        settings: candidates and pins; its budgets give way to the sizes.
        sizes_mb: budgets, MB.
        random_trials: random allocations at every size.
        rank_trials: random allocations of any size that the methods rank.
        seed: of both.
    """
    tuning = Truth(pricer.subject, pricer.subject.images)
    rows = [
        row
        for size in progress(sizes_mb, "budgets")
        for row in rows_at(
            pricer, truth, tuning, replace(settings, size_mb=size), random_trials, seed
        )
    ]
    ranks = correlations(pricer, truth, settings, rank_trials, seed)
    return Comparison(rows, ranks, truth.top1, random_trials, rank_trials)


def rows_at(
    pricer: Pricer,
    truth: Truth,
    tuning: Truth,
    settings: SearchSettings,
    random_trials: int,
    seed: int,
) -> list[Row]:
    """Every method, the widest uniform width that fits, the best and the median of chance.

    And what `--auto` would choose among them by `tuning`, which sees the calibration images.
    """
    tried = list(trials(pricer, truth, settings, random_trials=random_trials, seed=seed))
    named = [trial for trial in tried if trial.method.number is None]
    rows = [_row(pricer, str(trial.method), settings, trial) for trial in named]
    chosen = min(tried, key=lambda trial: tuning.outcome(trial.assignment).kl)
    passes = search_passes(pricer, len(tried))
    rows.append(replace(_row(pricer, "auto", settings, chosen), passes=passes))
    chance = sorted(
        (trial for trial in tried if trial.method.number is not None),
        key=lambda trial: trial.outcome.kl,
    )
    if chance:
        count = len(chance)
        rows.append(_row(pricer, f"random, best of {count}", settings, chance[0]))
        rows.append(_row(pricer, f"random, median of {count}", settings, chance[count // 2]))
    even = _uniform(pricer, truth, settings)
    return rows if even is None else [*rows, _row(pricer, str(even.method), settings, even)]


def correlations(
    pricer: Pricer, truth: Truth, settings: SearchSettings, count: int, seed: int
) -> list[Correlation]:
    """How every metric, and the plain number of bits, rank `count` random allocations."""
    program = program_of(pricer, pricer.even_prices(), settings)
    generator = np.random.default_rng(seed)
    choices = [scattered(program, generator) for _ in range(count)]
    measured = np.array(
        [
            truth.outcome(assignment_of(pricer, program.allocation(choice, "random"), settings)).kl
            for choice in choices
        ]
    )
    found = []
    for method in [*measuring_methods(), Method("number of bits")]:
        prices = _prices(pricer, method)
        priced = replace(program, price=_table(prices), log_scale=prices.relative_scale)
        predicted = np.array([priced.total(choice) for choice in choices])
        rho, low, high = _spearman(predicted, measured, generator)
        passes = 0.0 if method.metric == "number of bits" else prices.passes
        found.append(Correlation(str(method), rho, low, high, passes))
    return found


def _uniform(pricer: Pricer, truth: Truth, settings: SearchSettings) -> Trial | None:
    """The widest width for all that keeps the budgets and the pins, if there is one."""
    program = program_of(pricer, pricer.even_prices(), settings)
    for column in reversed(range(len(program.widths))):
        choice = [
            column if allowed[column] else int(np.flatnonzero(allowed)[0])
            for allowed in program.allowed
        ]
        if all(budget.spent(choice) <= budget.limit for budget in program.budgets):
            allocation: Allocation = program.allocation(choice, "uniform")
            assignment: Assignment = assignment_of(pricer, allocation, settings)
            outcome: Outcome = truth.outcome(assignment)
            name = Method(f"uniform {program.widths[column]}")
            return Trial(name, assignment, allocation, outcome)
    return None


def _row(pricer: Pricer, name: str, settings: SearchSettings, trial: Trial) -> Row:
    measures = trial.method in measuring_methods()
    return Row(
        method=name,
        budget_mb=float(settings.size_mb or 0.0),
        size_mb=trial.assignment.size_mb,
        kl=trial.outcome.kl,
        agreement=trial.outcome.agreement,
        top1=trial.outcome.top1,
        passes=_prices(pricer, trial.method).passes if measures else 0.0,
        bits=trial.assignment.bits,
    )


def _prices(pricer: Pricer, method: Method) -> Prices:
    if method.metric == "number of bits":
        return pricer.even_prices()
    return pricer.prices(method.metric, method.beta or 0.0)


def _table(prices: Prices) -> NDArray[np.float64]:
    if not prices.activations.size:
        return prices.weights
    both = prices.weights[:, :, None] + prices.activations[:, None, :]
    return both.reshape(len(prices.weights), -1)


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
    """Everything as JSON."""
    content = {**asdict(comparison), "versions": versions()}
    write_json(path, {"format": FORMAT, **(details or {}), **content})


def print_comparison(comparison: Comparison) -> None:
    """A table per budget, then the correlations."""
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
    """Size against divergence, one line per method."""
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
    """Uniform widths make one line."""
    return "uniform" if method.startswith("uniform") else method
