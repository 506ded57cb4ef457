"""The bit search: network + images → sensitivities → program → configuration."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixed_bit.allocation.program import Allocation
from mixed_bit.comparison.distance import Distance, find_smallest
from mixed_bit.comparison.outcome import OutcomeEvaluator
from mixed_bit.default_metric import settle_metric
from mixed_bit.feasibility import check_feasible
from mixed_bit.problem import Problem
from mixed_bit.sensitivity import METRICS, Sensitivity
from mixed_bit.sensitivity.evaluator import SensitivityEvaluator
from mixed_bit.sensitivity.features import Orthogonality, Shard
from mixed_bit.sensitivity.importance import Importance
from mixed_bit.settings import LARGEST_BUDGET, PAPER_METRIC, SearchSettings
from ompq.activation_memory import measure_peak
from ompq.assignment import Assignment, BitConfig
from ompq.data import iterate_images
from ompq.data.batching import batch_sizes
from ompq.errors import OmpqError
from ompq.graph import NetworkGraph, trace_for
from ompq.report.entries import list_shapes
from ompq.runtime import versions

# Images of a batch, or a batch of a loader, which holds their labels beside them.
Batch = Tensor | Sequence[Tensor]
# Two to measure on, two to judge by.
_FEWEST_TO_SPLIT = 4


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
        distance: How far the network is from the float one, where a distance was asked for.
        notes: What a user should know of the metric that was taken, one line each.
    """

    assignment: Assignment
    allocation: Allocation
    problem: Problem
    sensitivity: Sensitivity
    orthogonality: Orthogonality | None
    importance: Importance | None
    num_images: int
    seconds: dict[str, float]
    distance: Distance | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        proof = "proven optimal" if self.allocation.optimal else "not proven optimal"
        size = self.assignment.size_mb
        return f"<SearchResult {size:.4f} MB, {self.settings.chosen_metric}, {proof}: {self.bits}>"

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
            one), a pinned layer is not there, features are not finite, images are too few, or no
            allocation is as near to the float network as is asked.
    """
    if not settings.has_distance:
        evaluator = build_evaluator(network, images, settings, labels=labels, seed=seed)
        return measure_and_solve(evaluator, evaluator.problem)
    measured, judging = split_images(list(iterate_images(images)), labels)
    evaluator = build_evaluator(
        network, measured.images, settings, labels=measured.labels, seed=seed
    )
    outcomes = judge_by(evaluator, judging)
    return measure_and_solve(evaluator, evaluator.problem, outcomes)


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
        raise OmpqError("there are no calibration images; give a tensor of them, or batches")
    problem = Problem.build(trace_for(network, first[0]), settings)
    check_feasible(problem)
    device = next(problem.graph.module.parameters()).device
    shards = (Shard(batch.to(device), len(batch)) for batch in chain(first, batches))
    return SensitivityEvaluator(problem, shards, labels=labels, unbiased=len(first) > 1, seed=seed)


@dataclass(frozen=True)
class Half:
    """Half of the images: those that sensitivities are measured on, or those that judge.

    Attributes:
        images: Batches of images.
        labels: Their classes; None without labels.
    """

    images: list[Tensor]
    labels: Tensor | None


def split_images(batches: Sequence[Tensor], labels: Tensor | None) -> tuple[Half, Half]:
    """Split images into every other one, to measure on, and the rest, to judge by.

    Args:
        batches: Batches of images.
        labels: Their classes; None without labels.

    Raises:
        OmpqError: There are fewer than four images.
    """
    count = sum(map(len, batches))
    if count < _FEWEST_TO_SPLIT:
        raise OmpqError(
            f"{count} images: half of them judge the distance; give {_FEWEST_TO_SPLIT} or more"
        )
    images = torch.cat(list(batches))
    size = max(map(len, batches))
    halves = [images[start::2] for start in (0, 1)]
    classes = [None if labels is None else labels[start::2] for start in (0, 1)]
    first, second = (
        Half(list(half.split(batch_sizes(len(half), size))), own)
        for half, own in zip(halves, classes, strict=True)
    )
    return first, second


def judge_by(evaluator: SensitivityEvaluator, held: Half) -> OutcomeEvaluator:
    """Prepare the judgement of allocations by images held out.

    Args:
        evaluator: Measures the sensitivities.
        held: Images that it does not see.
    """
    device = next(evaluator.problem.graph.module.parameters()).device
    labels = None if held.labels is None else held.labels.to(device)
    return OutcomeEvaluator(evaluator.probed, torch.cat(held.images).to(device), labels)


def measure_and_solve(
    evaluator: SensitivityEvaluator, problem: Problem, outcomes: OutcomeEvaluator | None = None
) -> SearchResult:
    """Allocate widths by the metric of `problem`, whose sensitivities are measured at most once.

    Args:
        evaluator: Measures the groups of `problem`.
        problem: The evaluator's own, or one that differs in budgets, metric or solver.
        outcomes: Judges allocations by images held out, where the smallest network within a
            distance is sought.
    """
    start = time.perf_counter()
    problem, notes = settle_metric(evaluator, problem)
    settings = problem.settings
    metric, beta = settings.chosen_metric, settings.chosen_beta
    sensitivity = evaluator.sensitivity(metric, beta)
    measured = time.perf_counter()
    distance = None
    if outcomes is None:
        allocation = problem.solve(problem.build_program(sensitivity))
    else:
        sized = problem if settings.size_mb is not None else problem.at_size(LARGEST_BUDGET)
        program = sized.build_program(sensitivity)
        allocation, distance = find_smallest(sized, program, outcomes)
    solved = time.perf_counter()
    seconds = {"solve": solved - measured, "total": solved - start}
    orthogonality = importance = None
    if METRICS[metric].uses_orthogonality:
        orthogonality = evaluator.orthogonality
        importance = evaluator.importance(beta)
        seconds |= orthogonality.seconds
    if metric != PAPER_METRIC:
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
        distance=distance,
        notes=notes,
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
    of_features = METRICS[settings.chosen_metric].uses_orthogonality
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
        **_name_distance(result),
        "act_candidates": list(settings.act_widths),
        "metric": settings.chosen_metric,
        "price": result.allocation.objective,
        "forward_passes": result.sensitivity.forward_passes,
        "beta": settings.chosen_beta if of_features else None,
        "solver": settings.solver,
        "optimal": result.allocation.optimal,
        "note": result.allocation.note,
        "seed": seed,
        "num_images": result.num_images,
        "centred": settings.centred if of_features else None,
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
    target = None if settings.target is None else settings.target.name
    given = {"candidates_by_layer": by_layer, "pins": dict(settings.pins), "target": target}
    return {key: value for key, value in given.items() if value}


def _name_distance(result: SearchResult) -> dict[str, Any]:
    """Tell the distance that was asked for, and the one that was found, where one was."""
    if result.distance is None:
        return {}
    asked = {"kl": result.settings.kl_nats, "drop": result.settings.drop_points}
    return {"distance": {"asked": asked, **asdict(result.distance)}}


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
    if result.settings.chosen_metric != PAPER_METRIC:
        problem, sensitivity = result.problem, result.sensitivity
        entry["prices"] = _by_width(problem.widths, sensitivity.weights[index])
        if problem.act_widths:
            entry["act_prices"] = _by_width(problem.act_widths, sensitivity.activations[index])
    return entry


def _by_width(widths: Sequence[int], row: np.ndarray) -> dict[str, float]:
    return {str(width): float(value) for width, value in zip(widths, row, strict=True)}
