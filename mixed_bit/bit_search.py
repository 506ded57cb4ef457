"""The bit search: network + images → sensitivities → program → configuration."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from torch import Tensor, nn

from mixed_bit.allocation.program import Allocation
from mixed_bit.problem import Problem
from mixed_bit.sensitivity import METRICS, Sensitivity
from mixed_bit.sensitivity.evaluator import SensitivityEvaluator
from mixed_bit.sensitivity.features import Orthogonality, Shard
from mixed_bit.sensitivity.importance import Importance
from mixed_bit.settings import SearchSettings
from ompq.activation_memory import measure_peak
from ompq.assignment import Assignment, BitConfig
from ompq.data import iterate_images
from ompq.errors import OmpqError
from ompq.graph import NetworkGraph, trace_for
from ompq.report.entries import list_shapes
from ompq.runtime import versions

# Images of a batch, or a batch of a loader, which holds their labels beside them.
Batch = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class SearchResult:
    """The widths that a search found, and what they came from.

    Attributes:
        assignment: Width of every group of the network.
        allocation: Width of every listed group, and whether it is proven optimal.
        problem: What was asked.
        sensitivity: What each width costs each listed group.
        orthogonality: The orthogonality matrix, where the metric asks for it.
        importance: γ, θ and c, where the metric asks for them.
        num_images: Calibration images.
        seconds: Time of every stage.
    """

    assignment: Assignment
    allocation: Allocation
    problem: Problem
    sensitivity: Sensitivity
    orthogonality: Orthogonality | None
    importance: Importance | None
    num_images: int
    seconds: dict[str, float]

    def __repr__(self) -> str:
        proof = "proven optimal" if self.allocation.optimal else "not proven optimal"
        size = self.assignment.size_mb
        return f"<SearchResult {size:.4f} MB, {self.settings.metric}, {proof}: {self.bits}>"

    @property
    def bits(self) -> list[int]:
        """Return the bit list: one weight width per listed group, in execution order."""
        return self.assignment.bits

    @property
    def settings(self) -> SearchSettings:
        """Return what the user asked."""
        return self.problem.settings


def search(
    network: nn.Module | NetworkGraph,
    images: Tensor | Iterable[Batch],
    settings: SearchSettings,
    *,
    labels: Tensor | None = None,
    seed: int = 0,
) -> SearchResult:
    """Find the bit width of every layer of a network.

    Args:
        network: Any network that `torch.fx` can trace, or its traced graph; it is not changed.
        images: n × channels × height × width, normalised; or batches of such images, as a
            `DataLoader` yields them (its labels are not looked at). Several batches are measured
            one after the other by the unbiased minibatch estimate, four images each at least.
        settings: Metric, budgets and candidate widths.
        labels: n classes, for metrics that use them; None for the network's own predictions.
        seed: Seed of labels drawn from these predictions.

    Raises:
        OmpqError: The network cannot be traced, a budget is infeasible (names the smallest feasible
            one), a pinned layer is not there, features are not finite, or images are too few.
    """
    evaluator = build_evaluator(network, images, settings, labels=labels, seed=seed)
    return measure_and_solve(evaluator, evaluator.problem)


def build_evaluator(
    network: nn.Module | NetworkGraph,
    images: Tensor | Iterable[Batch],
    settings: SearchSettings,
    *,
    labels: Tensor | None = None,
    seed: int = 0,
) -> SensitivityEvaluator:
    """Prepare the measurement of sensitivities; the arguments are those of `search`.

    Raises:
        OmpqError: The network cannot be traced, a budget is infeasible, a pinned layer is not
            there, or there are no images.
    """
    batches = iterate_images(images)
    first = list(islice(batches, 2))
    if not first:
        raise OmpqError("there are no calibration images")
    problem = Problem.build(trace_for(network, first[0]), settings)
    problem.check_feasible()
    device = next(problem.graph.module.parameters()).device
    shards = (Shard(batch.to(device), len(batch)) for batch in chain(first, batches))
    return SensitivityEvaluator(problem, shards, labels=labels, unbiased=len(first) > 1, seed=seed)


def measure_and_solve(evaluator: SensitivityEvaluator, problem: Problem) -> SearchResult:
    """Allocate widths by the metric of `problem`, whose sensitivities are measured at most once.

    Args:
        evaluator: Measures the groups of `problem`.
        problem: The evaluator's own, or one that differs in budgets, metric or solver.
    """
    settings = problem.settings
    start = time.perf_counter()
    sensitivity = evaluator.sensitivity(settings.metric, settings.beta)
    measured = time.perf_counter()
    allocation = problem.solve(problem.build_program(sensitivity))
    solved = time.perf_counter()
    seconds = {"solve": solved - measured, "total": solved - start}
    orthogonality = importance = None
    if METRICS[settings.metric].uses_orthogonality:
        orthogonality = evaluator.orthogonality
        importance = evaluator.importance(settings.beta)
        seconds |= orthogonality.seconds
    if settings.metric != "orm":
        seconds["prices"] = measured - start
    return SearchResult(
        assignment=problem.assign(allocation),
        allocation=allocation,
        problem=problem,
        sensitivity=sensitivity,
        orthogonality=orthogonality,
        importance=importance,
        num_images=evaluator.num_images,
        seconds=seconds,
    )


def build_bit_config(
    result: SearchResult, model: str, *, seed: int = 0, details: Mapping[str, Any] | None = None
) -> BitConfig:
    """Gather what goes into `bit_config.json`: the widths and everything that made them.

    Args:
        result: Result of a search.
        model: Name of the network as the user gave it.
        seed: Seed of the run.
        details: Further settings to record (data set, source of the weights, …).
    """
    settings, assignment = result.settings, result.assignment
    peak = measure_peak(result.problem.graph, assignment)
    how: dict[str, Any] = {
        "float_size_mb": assignment.float_size_mb,
        "budget": {
            "model_size_mb": settings.size_mb,
            "bops_g": settings.bops_g,
            "latency_ms": settings.latency_ms,
            "act_memory_kb": settings.act_memory_kb,
        },
        "act_memory_kb": peak.kb,
        "act_memory_step": peak.step,
        "candidates": list(settings.widths),
        **_name_choices(settings),
        "act_candidates": list(settings.act_widths),
        "metric": settings.metric,
        "price": result.allocation.objective,
        "forward_passes": result.sensitivity.forward_passes,
        "beta": settings.beta,
        "solver": settings.solver,
        "optimal": result.allocation.optimal,
        "note": result.allocation.note,
        "seed": seed,
        "num_images": result.num_images,
        "centred": settings.centred,
        **(details or {}),
        "timing": {name: round(value, 4) for name, value in result.seconds.items()},
        "versions": versions(),
    }
    if result.orthogonality is not None:
        how["estimator"] = "minibatch, unbiased" if result.orthogonality.unbiased else "exact"
    if settings.latency_table is not None:
        table = settings.latency_table
        how["latency_ms"] = table.total_ms(assignment.groups, assignment.widths)
    return BitConfig(
        model=model,
        quant_type=settings.quant_type,
        bits=tuple(assignment.bits),
        groups=tuple(_group_entries(result)),
        act_bits=assignment.act_bits,
        model_size_mb=assignment.size_mb,
        bops_g=assignment.bops_g,
        details=how,
    )


def _name_choices(settings: SearchSettings) -> dict[str, Any]:
    """Name widths that were given by layer, where some were."""
    by_layer = {name: list(widths) for name, widths in settings.candidate_bits_by_layer.items()}
    given = {"candidates_by_layer": by_layer, "pins": dict(settings.pins)}
    return {key: value for key, value in given.items() if value}


def _group_entries(result: SearchResult) -> list[dict[str, Any]]:
    assignment, pins = result.assignment, result.problem.pins
    positions = {group.name: index for index, group in enumerate(result.problem.listed)}
    rows = zip(assignment.groups, assignment.widths, assignment.activations, strict=True)
    return [
        {
            "layers": list(group.layers),
            "bits": width,
            "act_bits": act,
            "params": group.params,
            "ops": group.ops,
            "shapes": list_shapes(result.problem.graph, group),
            **_measured(result, positions.get(group.name)),
            "pinned": group.name not in positions or group.name in pins,
            "in_list": group.name in positions,
        }
        for group, width, act in rows
    ]


def _measured(result: SearchResult, index: int | None) -> dict[str, Any]:
    """Return what is known of one listed group; nothing of the others (`index` None)."""
    entry: dict[str, Any] = dict.fromkeys(
        ("gamma", "importance", "log_importance", "log_theta", "prices", "act_prices")
    )
    if index is None:
        return entry
    if result.importance is not None:
        log_importance = float(result.importance.log_importance[index])
        entry["gamma"] = float(result.importance.gamma[index])
        entry["importance"] = math.exp(log_importance)
        entry["log_importance"] = log_importance
        entry["log_theta"] = float(result.importance.log_theta[index])
    if result.settings.metric != "orm":
        problem, sensitivity = result.problem, result.sensitivity
        entry["prices"] = _by_width(problem.widths, sensitivity.weights[index])
        if problem.act_widths:
            entry["act_prices"] = _by_width(problem.act_widths, sensitivity.activations[index])
    return entry


def _by_width(widths: Sequence[int], row: np.ndarray) -> dict[str, float]:
    return {str(width): float(value) for width, value in zip(widths, row, strict=True)}
