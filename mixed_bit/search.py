"""The bit search: network + images → orthogonality → importances → program → configuration."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mixed_bit import allocate
from mixed_bit.allocate import Allocation, Budget, Program
from mixed_bit.features import Orthogonality, Shard, measure_orthogonality
from mixed_bit.importance import gamma, log_importance, log_theta
from ompq.bitconfig import DEFAULT_ACT_BITS, PINNED_BITS, QUANT_TYPES, Assignment, BitConfig
from ompq.cost import BITS_PER_MB, check_widths
from ompq.errors import OmpqError
from ompq.graph import Group, NetworkGraph
from ompq.runtime import Ranks, versions


@dataclass(frozen=True)
class SearchSettings:
    """What the user asks of a search; refuses what makes no sense.

    `size_mb` (2²⁰ bytes) and `bops_g` (10⁹ bit operations) are budgets, one at least. `candidates`
    is None for the widths of the quantization type. `pins` fixes layers by name. `beta` ≥ 0 is the
    β of θ = exp(−β γ).
    """

    quant_type: str
    size_mb: float | None = None
    bops_g: float | None = None
    candidates: tuple[int, ...] | None = None
    pins: Mapping[str, int] = field(default_factory=dict)
    act_bits: int = DEFAULT_ACT_BITS
    beta: float = 10.0
    solver: str = "ilp"
    rounding: str = "fill"
    centred: bool = True

    def __post_init__(self) -> None:
        if self.quant_type not in QUANT_TYPES:
            known = ", ".join(QUANT_TYPES)
            raise OmpqError(f"--quant_type {self.quant_type}: unknown; choose one of {known}")
        if self.size_mb is None and self.bops_g is None:
            raise OmpqError("no budget is given; set --model_size MB or --bops G")
        for option, value in (("--model_size", self.size_mb), ("--bops", self.bops_g)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise OmpqError(f"{option} {value}: a budget is a positive number")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise OmpqError(f"--beta {self.beta}: give a finite number that is not negative")
        if not self.widths:
            raise OmpqError("--bits is empty; give candidate widths such as 4,8")
        check_widths(self.widths, "--bits")
        check_widths(list(self.pins.values()), "--pin")
        check_widths([self.act_bits], "--act_bits")

    @property
    def widths(self) -> tuple[int, ...]:
        """Candidate widths, ascending."""
        return tuple(sorted(set(self.candidates or QUANT_TYPES[self.quant_type].candidates)))


@dataclass(frozen=True)
class SearchResult:
    """The widths found, and the matrix they came from.

    `orthogonality` and the per-group vectors cover the groups of the bit list, in its order.
    """

    assignment: Assignment
    allocation: Allocation
    settings: SearchSettings
    orthogonality: Orthogonality
    gamma: np.ndarray
    log_theta: np.ndarray
    log_importance: np.ndarray
    seconds: dict[str, float]


def listed_groups(graph: NetworkGraph, quant_type: str) -> list[Group]:
    """The groups that have an entry in the bit list of this quantization type."""
    groups = [group for group in graph.groups if QUANT_TYPES[quant_type].takes_part(group)]
    if not groups:
        raise OmpqError(
            f"{quant_type} pins the first and the last layer and this network has no other; "
            "use --quant_type PTQ"
        )
    return groups


def search(
    graph: NetworkGraph,
    batches: Iterable[Shard],
    settings: SearchSettings,
    *,
    unbiased: bool = False,
    ranks: Ranks | None = None,
) -> SearchResult:
    """Find the bit width of every group.

    Args:
        graph: the network, on the device where it shall run.
        batches: calibration images on that device; one batch unless `unbiased`.
        settings: budgets and choices.
        unbiased: average the unbiased minibatch estimator over several batches.
        ranks: this process among others.

    Raises:
        OmpqError: an infeasible budget (names the smallest feasible one), an unknown pin,
            features that are not finite, too few images.
    """
    start = time.perf_counter()
    groups = listed_groups(graph, settings.quant_type)
    pins = _pins_by_group(graph.groups, settings.pins)
    check_feasible(graph.groups, settings)
    orthogonality = measure_orthogonality(
        graph, groups, batches, centred=settings.centred, unbiased=unbiased, ranks=ranks
    )
    before_solve = time.perf_counter()
    gammas = gamma(orthogonality.matrix)
    log_thetas = log_theta(gammas, settings.beta)
    log_importances = log_importance(log_thetas)
    program = orthogonality_program(graph.groups, groups, log_importances, settings, pins)
    allocation = allocate.solve(program, settings.solver, settings.rounding)
    end = time.perf_counter()
    seconds = {**orthogonality.seconds, "solve": end - before_solve, "total": end - start}
    assignment = _assignment(graph.groups, groups, allocation.bits, settings, pins)
    return SearchResult(
        assignment,
        allocation,
        settings,
        orthogonality,
        gammas,
        log_thetas,
        log_importances,
        seconds,
    )


def orthogonality_program(
    all_groups: Sequence[Group],
    listed: Sequence[Group],
    log_importances: np.ndarray,
    settings: SearchSettings,
    pins: Mapping[str, int] | None = None,
) -> Program:
    """The program of the paper: maximise Σ c_i b_i, as prices −c_i·b to be minimised.

    Args:
        all_groups: every group of the network; those not `listed` are constants of the budgets.
        listed: the L groups to decide on.
        log_importances: ln c, L values.
        settings: budgets and candidates.
        pins: group name → width.
    """
    pins = pins or {}
    widths = tuple(sorted({*settings.widths, *(pins[g.name] for g in listed if g.name in pins)}))
    allowed = np.array(
        [
            [
                width == pins[g.name] if g.name in pins else width in settings.widths
                for width in widths
            ]
            for g in listed
        ]
    )
    return Program(
        price=-np.tile(np.array(widths, dtype=np.float64), (len(listed), 1)),
        log_scale=np.asarray(log_importances, dtype=np.float64),
        widths=widths,
        allowed=allowed,
        budgets=_budgets(all_groups, listed, widths, settings, pins),
        names=tuple(group.name for group in listed),
    )


def _budgets(
    all_groups: Sequence[Group],
    listed: Sequence[Group],
    widths: tuple[int, ...],
    settings: SearchSettings,
    pins: Mapping[str, int],
) -> tuple[Budget, ...]:
    names = {group.name for group in listed}
    fixed = [(g, pins.get(g.name, PINNED_BITS)) for g in all_groups if g.name not in names]
    budgets = []
    if settings.size_mb is not None:
        cost = [[group.params * width for width in widths] for group in listed]
        constant = sum(group.params * width for group, width in fixed)
        budgets.append(_budget("size", "MB", cost, constant, settings.size_mb, BITS_PER_MB))
    if settings.bops_g is not None:
        act = settings.act_bits
        cost = [[group.ops * width * act for width in widths] for group in listed]
        constant = sum(group.ops * width * PINNED_BITS for group, width in fixed)
        budgets.append(_budget("BOPs", "G", cost, constant, settings.bops_g, 10**9))
    return tuple(budgets)


def _budget(
    name: str, unit: str, cost: list[list[int]], constant: int, limit: float, per_unit: int
) -> Budget:
    return Budget(
        name=name,
        cost=np.array(cost, dtype=np.int64),
        limit=math.floor(limit * per_unit),
        constant=constant,
        unit=unit,
        per_unit=per_unit,
    )


def _pins_by_group(groups: Sequence[Group], pins: Mapping[str, int]) -> dict[str, int]:
    """Pins by the name of their group; tied layers share one."""
    by_layer = {layer: group.name for group in groups for layer in group.layers}
    unknown = [layer for layer in pins if layer not in by_layer]
    if unknown:
        names = ", ".join(group.name for group in groups)
        raise OmpqError(f"--pin {unknown[0]}: the network has no such layer; it has {names}")
    chosen: dict[str, int] = {}
    for layer, width in pins.items():
        group = by_layer[layer]
        if chosen.setdefault(group, width) != width:
            raise OmpqError(
                f"--pin {layer}={width}: tied to {group}, which is pinned at {chosen[group]}"
            )
    return chosen


def _assignment(
    all_groups: Sequence[Group],
    listed: Sequence[Group],
    bits: Sequence[int],
    settings: SearchSettings,
    pins: Mapping[str, int],
) -> Assignment:
    found = {group.name: width for group, width in zip(listed, bits, strict=True)}
    widths = tuple(found.get(g.name, pins.get(g.name, PINNED_BITS)) for g in all_groups)
    in_list = tuple(group.name in found for group in all_groups)
    return Assignment(tuple(all_groups), widths, in_list, settings.act_bits)


def check_feasible(groups: Sequence[Group], settings: SearchSettings) -> None:
    """Refuse an infeasible budget before any image is looked at.

    Raises:
        OmpqError: names the smallest feasible size.
    """
    listed = [g for g in groups if QUANT_TYPES[settings.quant_type].takes_part(g)]
    pins = _pins_by_group(groups, settings.pins)
    program = orthogonality_program(groups, listed, np.zeros(len(listed)), settings, pins)
    allocate.check_feasible(program)


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
    return BitConfig(
        model=model,
        quant_type=settings.quant_type,
        bits=tuple(assignment.bits),
        groups=tuple(_group_entries(result)),
        act_bits=settings.act_bits,
        model_size_mb=assignment.size_mb,
        bops_g=assignment.bops_g,
        details={
            "float_size_mb": assignment.float_size_mb,
            "budget": {"model_size_mb": settings.size_mb, "bops_g": settings.bops_g},
            "candidates": list(settings.widths),
            "beta": settings.beta,
            "solver": settings.solver,
            "optimal": result.allocation.optimal,
            "note": result.allocation.note,
            "seed": seed,
            "num_images": result.orthogonality.num_images,
            "estimator": "minibatch, unbiased" if result.orthogonality.unbiased else "exact",
            "centred": settings.centred,
            **(details or {}),
            "timing": {name: round(value, 4) for name, value in result.seconds.items()},
            "versions": versions(),
        },
    )


def _group_entries(result: SearchResult) -> list[dict[str, Any]]:
    assignment = result.assignment
    values = zip(result.gamma, result.log_importance, result.log_theta, strict=True)
    pinned_names = set(_pins_by_group(assignment.groups, result.settings.pins))
    entries = []
    rows = zip(assignment.groups, assignment.widths, assignment.listed, strict=True)
    for group, width, listed in rows:
        measured = next(values) if listed else None
        entries.append(
            {
                "layers": list(group.layers),
                "bits": width,
                "params": group.params,
                "ops": group.ops,
                "gamma": float(measured[0]) if measured else None,
                "importance": math.exp(measured[1]) if measured else None,
                "log_importance": float(measured[1]) if measured else None,
                "log_theta": float(measured[2]) if measured else None,
                "pinned": not listed or group.name in pinned_names,
                "in_list": listed,
            }
        )
    return entries
