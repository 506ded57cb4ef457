"""Every way to an allocation, and the one that does best when it is tried out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mixed_bit.allocation.program import Allocation
from mixed_bit.bit_search import SearchResult, measure_and_solve
from mixed_bit.comparison.outcome import Outcome, OutcomeEvaluator
from mixed_bit.comparison.random_baseline import draw_allocation
from mixed_bit.problem import Problem
from mixed_bit.sensitivity import METRICS
from mixed_bit.sensitivity.evaluator import SensitivityEvaluator
from ompq.assignment import Assignment

# β near zero makes all groups alike; the paper's 10 leaves those with the least γ.
BETAS = (0.01, 1.0, 10.0)
RANDOM_TRIALS = 20
# What `bit_config.json` shows of a winner that no metric found.
_SHOWN_INSTEAD = "kl"


@dataclass(frozen=True)
class Candidate:
    """A way to an allocation.

    Attributes:
        name: A metric, `projection`, `random`, or what else a table names.
        beta: β of a metric of orthogonality.
        number: Number of a random allocation.
    """

    name: str
    beta: float | None = None
    number: int | None = None

    @property
    def is_metric(self) -> bool:
        """Tell whether a metric leads to the allocation."""
        return self.name in METRICS

    def __str__(self) -> str:
        if self.number is not None:
            return f"{self.name} {self.number}"
        return self.name if self.beta is None else f"{self.name} β={self.beta:g}"


@dataclass(frozen=True)
class Trial:
    """A candidate's allocation, and what it does to the output."""

    candidate: Candidate
    assignment: Assignment
    allocation: Allocation
    outcome: Outcome


def list_metric_candidates() -> list[Candidate]:
    """Return every metric, those of orthogonality last, each at every β of `BETAS`."""
    plain = [Candidate(name) for name, metric in METRICS.items() if not metric.uses_orthogonality]
    by_beta = [name for name, metric in METRICS.items() if metric.uses_orthogonality]
    return plain + [Candidate(name, beta) for name in by_beta for beta in BETAS]


def try_candidates(
    evaluator: SensitivityEvaluator,
    outcomes: OutcomeEvaluator,
    problem: Problem,
    *,
    random_trials: int,
    seed: int,
) -> Iterator[Trial]:
    """Allocate within the budgets of `problem` in every way, and try each allocation out.

    Projection takes part where it is defined: a size budget alone and no choice of activations.

    Args:
        evaluator: Measures sensitivities, on calibration images.
        outcomes: Measures what an allocation does, on its own images.
        problem: Budgets and candidate widths; its metric and solver give way.
        random_trials: How many random allocations are tried.
        seed: Seed of these.
    """

    def trial(candidate: Candidate, allocation: Allocation) -> Trial:
        assignment = problem.assign(allocation)
        return Trial(candidate, assignment, allocation, outcomes.measure(assignment))

    for candidate in list_metric_candidates():
        chosen = _with_candidate(problem, candidate)
        sensitivity = evaluator.sensitivity(candidate.name, chosen.settings.chosen_beta)
        yield trial(candidate, chosen.solve(chosen.build_program(sensitivity)))
    program = problem.build_program(evaluator.uniform_sensitivity())
    settings = problem.settings
    only_size = settings.size_mb is not None and settings.bops_g is None
    only_size &= settings.latency_ms is None
    if only_size and not settings.act_widths:
        chosen = problem.with_settings(replace(settings, solver="projection"))
        yield trial(Candidate("projection"), chosen.solve(program))
    generator = np.random.default_rng(seed)
    for number in range(1, random_trials + 1):
        yield trial(Candidate("random", number=number), draw_allocation(program, generator))


def choose_best(
    evaluator: SensitivityEvaluator, outcomes: OutcomeEvaluator, problem: Problem, *, seed: int
) -> tuple[SearchResult, list[Trial]]:
    """Try every candidate out; return the one of least divergence as a result, and all trials."""
    start = time.perf_counter()
    tried = list(
        try_candidates(evaluator, outcomes, problem, random_trials=RANDOM_TRIALS, seed=seed)
    )
    winner = min(tried, key=lambda trial: trial.outcome.kl)
    shown = winner.candidate if winner.candidate.is_metric else Candidate(_SHOWN_INSTEAD)
    result = measure_and_solve(evaluator, _with_candidate(problem, shown))
    program = result.problem.build_program(result.sensitivity)
    allocation = replace(
        winner.allocation,
        note=f"chosen by measured divergence among {len(tried)} allocations: {winner.candidate}",
        objective=program.total(program.choice(winner.allocation)),
    )
    spent = time.perf_counter() - start
    passes = count_forward_passes(evaluator, len(tried))
    result = replace(
        result,
        assignment=winner.assignment,
        allocation=allocation,
        sensitivity=replace(result.sensitivity, forward_passes=passes),
        seconds=result.seconds | {"prices": spent, "total": spent},
    )
    return result, tried


def count_forward_passes(evaluator: SensitivityEvaluator, tried: int) -> float:
    """Return the work of measuring every metric once and trying so many allocations out.

    In forward passes of the calibration images. What `orm_sqnr` needs, `orm` and `sqnr` measure.
    """
    return tried + sum(
        evaluator.sensitivity(name, 1.0).forward_passes for name in METRICS if name != "orm_sqnr"
    )


def _with_candidate(problem: Problem, candidate: Candidate) -> Problem:
    """Return the problem as a metric candidate solves it."""
    settings = problem.settings
    beta = settings.chosen_beta if candidate.beta is None else candidate.beta
    return problem.with_settings(replace(settings, metric=candidate.name, beta=beta, solver="ilp"))
