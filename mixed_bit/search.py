"""The bit search: network + images → prices → program → configuration."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from mixed_bit import allocate
from mixed_bit.agreement import solve_in_agreement
from mixed_bit.allocate import Allocation
from mixed_bit.budgets import (
    activation_widths,
    build_program,
    listed_groups,
    pins_by_group,
    weight_widths,
)
from mixed_bit.features import Orthogonality, Shard
from mixed_bit.importance import Importance
from mixed_bit.metrics import ORTHOGONAL, Prices
from mixed_bit.pricing import Pricer
from mixed_bit.program import Program
from mixed_bit.settings import SearchSettings
from ompq.bitconfig import PINNED_BITS, Assignment, BitConfig
from ompq.graph import Group, NetworkGraph
from ompq.runtime import Ranks, versions

__all__ = ["SearchResult", "SearchSettings", "check_feasible", "search", "solve", "to_bit_config"]


@dataclass(frozen=True)
class SearchResult:
    """The widths found, and what they came from.

    `prices` cover the groups of the bit list, in its order, at `widths` (and `act_widths`).
    `orthogonality` and `importance` are there where the metric asks for them.
    """

    assignment: Assignment
    allocation: Allocation
    settings: SearchSettings
    prices: Prices
    widths: tuple[int, ...]
    act_widths: tuple[int, ...]
    orthogonality: Orthogonality | None
    importance: Importance | None
    num_images: int
    seconds: dict[str, float]


def search(
    graph: NetworkGraph,
    batches: Iterable[Shard],
    settings: SearchSettings,
    *,
    unbiased: bool = False,
    ranks: Ranks | None = None,
    labels: Tensor | None = None,
    seed: int = 0,
) -> SearchResult:
    """Find the bit width of every group.

    Args:
        graph: the network, on the device where it shall run.
        batches: calibration images on that device; one batch unless `unbiased`.
        settings: metric, budgets and choices.
        unbiased: average the unbiased minibatch estimator over several batches.
        ranks: this process among others.
        labels: of the images, for metrics that use them; None for the network's own predictions.
        seed: of labels drawn from these.

    Raises:
        OmpqError: an infeasible budget (names the smallest feasible one), an unknown pin,
            features that are not finite, too few images.
    """
    check_feasible(graph.groups, settings)
    pricer = pricer_of(
        graph, batches, settings, unbiased=unbiased, ranks=ranks, labels=labels, seed=seed
    )
    return price_and_solve(pricer, settings)


def pricer_of(
    graph: NetworkGraph,
    batches: Iterable[Shard],
    settings: SearchSettings,
    *,
    unbiased: bool = False,
    ranks: Ranks | None = None,
    labels: Tensor | None = None,
    seed: int = 0,
) -> Pricer:
    """What prices the groups that these settings choose for; see `search`."""
    listed = listed_groups(graph.groups, settings.quant_type)
    return Pricer(
        graph,
        listed,
        batches,
        widths=weight_widths(listed, settings),
        act_widths=activation_widths(settings),
        labels=labels,
        centred=settings.centred,
        unbiased=unbiased,
        ranks=ranks,
        seed=seed,
    )


def price_and_solve(pricer: Pricer, settings: SearchSettings) -> SearchResult:
    """The allocation by the metric of `settings`, its prices measured unless they are already."""
    start = time.perf_counter()
    prices = pricer.prices(settings.metric, settings.beta)
    priced = time.perf_counter()
    assignment, allocation = solve(pricer, prices, settings)
    solved = time.perf_counter()
    orthogonality = pricer.orthogonality if settings.metric in ORTHOGONAL else None
    seconds = {"solve": solved - priced, "total": solved - start}
    if orthogonality is not None:
        seconds |= orthogonality.seconds
    if settings.metric != "orm":
        seconds["prices"] = priced - start
    return SearchResult(
        assignment=assignment,
        allocation=allocation,
        settings=settings,
        prices=prices,
        widths=pricer.widths,
        act_widths=pricer.act_widths,
        orthogonality=orthogonality,
        importance=(Importance.of(orthogonality.matrix, settings.beta) if orthogonality else None),
        num_images=pricer.num_images,
        seconds=seconds,
    )


def solve(
    pricer: Pricer, prices: Prices, settings: SearchSettings
) -> tuple[Assignment, Allocation]:
    """The allocation of these prices within the budgets of `settings`."""
    return solve_program(pricer, program_of(pricer, prices, settings), settings)


def program_of(pricer: Pricer, prices: Prices, settings: SearchSettings) -> Program:
    """The program of these prices and the budgets of `settings`."""
    groups = pricer.graph.groups
    return build_program(groups, pricer.groups, prices, settings, pricer.fixed_activations)


def solve_program(
    pricer: Pricer, program: Program, settings: SearchSettings
) -> tuple[Assignment, Allocation]:
    """The allocation of a program for the groups of `pricer`."""
    if settings.act_widths:
        allocation = solve_in_agreement(program, pricer.readers, settings.solver, settings.rounding)
    else:
        allocation = allocate.solve(program, settings.solver, settings.rounding)
    return assignment_of(pricer, allocation, settings), allocation


def assignment_of(pricer: Pricer, allocation: Allocation, settings: SearchSettings) -> Assignment:
    """The widths of all groups of the network, pinned ones included."""
    all_groups, listed = pricer.graph.groups, pricer.groups
    pins = pins_by_group(all_groups, settings.pins)
    found = {group.name: width for group, width in zip(listed, allocation.bits, strict=True)}
    widths = tuple(found.get(g.name, pins.get(g.name, PINNED_BITS)) for g in all_groups)
    in_list = tuple(group.name in found for group in all_groups)
    if not allocation.act_bits:
        return Assignment(tuple(all_groups), widths, in_list, settings.act_bits)
    chosen = {group.name: act for group, act in zip(listed, allocation.act_bits, strict=True)}
    return Assignment(
        tuple(all_groups),
        widths,
        in_list,
        max(chosen.values()),
        group_act_bits=tuple(chosen.get(g.name, PINNED_BITS) for g in all_groups),
    )


def check_feasible(groups: Sequence[Group], settings: SearchSettings) -> None:
    """Refuse an infeasible budget before any image is looked at.

    Raises:
        OmpqError: names the smallest feasible size.
    """
    listed = listed_groups(groups, settings.quant_type)
    free = Prices(
        weights=np.zeros((len(listed), len(weight_widths(listed, settings)))),
        activations=np.zeros((len(listed), len(activation_widths(settings)))),
        log_scale=np.zeros(len(listed)),
        passes=0.0,
    )
    allocate.check_feasible(build_program(groups, listed, free, settings))


def to_bit_config(
    result: SearchResult, model: str, *, seed: int, details: Mapping[str, Any] | None = None
) -> BitConfig:
    """What goes into `bit_config.json`: the widths and everything that made them.

    Args:
        result: of `search`.
        model: name of the network as the user gave it.
        seed: of the run.
        details: further settings to record (data set, source of the weights, …).
    """
    settings, assignment = result.settings, result.assignment
    how: dict[str, Any] = {
        "float_size_mb": assignment.float_size_mb,
        "budget": {
            "model_size_mb": settings.size_mb,
            "bops_g": settings.bops_g,
            "latency_ms": settings.latency_ms,
        },
        "candidates": list(settings.widths),
        "act_candidates": list(settings.act_widths),
        "metric": settings.metric,
        "price": result.allocation.price,
        "forward_passes": result.prices.passes,
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
    if settings.latency is not None:
        how["latency_ms"] = settings.latency.total_ms(assignment.groups, assignment.widths)
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


def _group_entries(result: SearchResult) -> list[dict[str, Any]]:
    assignment = result.assignment
    pinned_names = set(pins_by_group(assignment.groups, result.settings.pins))
    positions = iter(range(len(result.prices.weights)))
    entries = []
    rows = zip(
        assignment.groups,
        assignment.widths,
        assignment.activations,
        assignment.listed,
        strict=True,
    )
    for group, width, act, listed in rows:
        entries.append(
            {
                "layers": list(group.layers),
                "bits": width,
                "act_bits": act,
                "params": group.params,
                "ops": group.ops,
                **_measured(result, next(positions) if listed else None),
                "pinned": not listed or group.name in pinned_names,
                "in_list": listed,
            }
        )
    return entries


def _measured(result: SearchResult, index: int | None) -> dict[str, Any]:
    """What is known of one of the groups that were chosen for; nothing of the others."""
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
        entry["prices"] = _by_width(result.widths, result.prices.weights[index])
        if result.act_widths:
            entry["act_prices"] = _by_width(result.act_widths, result.prices.activations[index])
    return entry


def _by_width(widths: Sequence[int], prices: np.ndarray) -> dict[str, float]:
    return {str(width): float(price) for width, price in zip(widths, prices, strict=True)}
