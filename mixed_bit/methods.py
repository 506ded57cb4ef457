"""Every way to an allocation, and the one that does best when it is tried out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mixed_bit.allocate import Allocation
from mixed_bit.chance import random_allocation
from mixed_bit.metrics import METRICS, ORTHOGONAL, PLAIN
from mixed_bit.pricing import Pricer
from mixed_bit.search import (
    SearchResult,
    assignment_of,
    price_and_solve,
    program_of,
    solve,
)
from mixed_bit.settings import SearchSettings
from mixed_bit.truth import Outcome, Truth
from ompq.bitconfig import Assignment

# β near zero makes all groups alike; the paper's 10 leaves those with the least γ.
BETAS = (0.01, 1.0, 10.0)
RANDOM_TRIALS = 20


@dataclass(frozen=True)
class Method:
    """A way to an allocation: a metric with its β, `projection`, or `random` with its number."""

    metric: str
    beta: float | None = None
    number: int | None = None

    def __str__(self) -> str:
        if self.number is not None:
            return f"{self.metric} {self.number}"
        return self.metric if self.beta is None else f"{self.metric} β={self.beta:g}"


@dataclass(frozen=True)
class Trial:
    """An allocation and what it does."""

    method: Method
    assignment: Assignment
    allocation: Allocation
    outcome: Outcome


def measuring_methods() -> list[Method]:
    """Every metric, those of orthogonality at every β of `BETAS`."""
    plain = [Method(metric) for metric in PLAIN]
    return plain + [Method(metric, beta) for metric in ORTHOGONAL for beta in BETAS]


def trials(
    pricer: Pricer, truth: Truth, settings: SearchSettings, *, random_trials: int, seed: int
) -> Iterator[Trial]:
    """All methods within the budgets of `settings`, each tried out on the images of `truth`.

    Projection takes part where it is defined: a size budget alone and no choice of activations.
    """

    def trial(method: Method, assignment: Assignment, allocation: Allocation) -> Trial:
        return Trial(method, assignment, allocation, truth.outcome(assignment))

    for method in measuring_methods():
        chosen = _settings(settings, method)
        prices = pricer.prices(chosen.metric, chosen.beta)
        yield trial(method, *solve(pricer, prices, chosen))
    even = pricer.even_prices()
    only_size = settings.bops_g is None and settings.latency_ms is None
    if only_size and not settings.act_widths:
        chosen = replace(settings, solver="projection")
        yield trial(Method("projection"), *solve(pricer, even, chosen))
    program = program_of(pricer, even, settings)
    generator = np.random.default_rng(seed)
    for number in range(1, random_trials + 1):
        allocation = random_allocation(program, generator)
        assignment = assignment_of(pricer, allocation, settings)
        yield trial(Method("random", number=number), assignment, allocation)


def best(
    pricer: Pricer, truth: Truth, settings: SearchSettings, *, seed: int
) -> tuple[SearchResult, list[Trial]]:
    """The trial with the least divergence as the result of a search, and all trials."""
    start = time.perf_counter()
    tried = list(trials(pricer, truth, settings, random_trials=RANDOM_TRIALS, seed=seed))
    winner = min(tried, key=lambda trial: trial.outcome.kl)
    # What was not priced itself is shown by the prices that tell most.
    shown = winner.method if winner.method.metric in METRICS else Method("kl")
    result = price_and_solve(pricer, _settings(settings, shown))
    program = program_of(pricer, result.prices, result.settings)
    allocation = replace(
        winner.allocation,
        note=f"chosen by measured divergence among {len(tried)} allocations: {winner.method}",
        price=program.total(program.choice(winner.allocation)),
    )
    spent = time.perf_counter() - start
    result = replace(
        result,
        assignment=winner.assignment,
        allocation=allocation,
        prices=replace(result.prices, passes=search_passes(pricer, len(tried))),
        seconds=result.seconds | {"prices": spent, "total": spent},
    )
    return result, tried


def search_passes(pricer: Pricer, tried: int) -> float:
    """The work of measuring all prices and of trying out so many allocations, in forward passes."""
    return tried + sum(pricer.prices(metric, 1.0).passes for metric in ("orm", *PLAIN))


def _settings(settings: SearchSettings, method: Method) -> SearchSettings:
    if method.metric in ("projection", "random"):
        return settings
    beta = settings.beta if method.beta is None else method.beta
    return replace(settings, metric=method.metric, beta=beta, solver="ilp")
