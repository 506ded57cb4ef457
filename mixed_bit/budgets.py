"""From prices, candidates and budgets to the program that `allocate` solves."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from mixed_bit.latency import NANOSECONDS_PER_MS
from mixed_bit.metrics import Prices
from mixed_bit.program import Budget, Program
from mixed_bit.settings import SearchSettings
from ompq.bitconfig import PINNED_BITS, QUANT_TYPES
from ompq.cost import BITS_PER_MB
from ompq.errors import OmpqError
from ompq.graph import Group


def listed_groups(groups: Sequence[Group], quant_type: str) -> list[Group]:
    """The groups that have an entry in the bit list of this quantization type."""
    listed = [group for group in groups if QUANT_TYPES[quant_type].takes_part(group)]
    if not listed:
        raise OmpqError(
            f"{quant_type} pins the first and the last layer and this network has no other; "
            "use --quant_type PTQ"
        )
    return listed


def pins_by_group(groups: Sequence[Group], pins: Mapping[str, int]) -> dict[str, int]:
    """Pins by the name of their group; tied layers share one.

    Raises:
        OmpqError: a layer that is not there, or tied layers pinned at several widths.
    """
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


def weight_widths(listed: Sequence[Group], settings: SearchSettings) -> tuple[int, ...]:
    """All widths that some of the listed groups may get, pinned ones included, ascending."""
    pins = pins_by_group(listed, _pins_of(listed, settings.pins))
    return tuple(sorted({*settings.widths, *pins.values()}))


def activation_widths(settings: SearchSettings) -> tuple[int, ...]:
    """All widths of activations if there is a choice, the 8 bits of the images included."""
    return tuple(sorted({*settings.act_widths, PINNED_BITS})) if settings.act_widths else ()


def build_program(
    all_groups: Sequence[Group],
    listed: Sequence[Group],
    prices: Prices,
    settings: SearchSettings,
    fixed_activations: Collection[str] = (),
) -> Program:
    """Minimise the sum of the groups' prices under every budget of the settings.

    A column is a weight width, or a weight and an activation width if there is a choice of both;
    its price is the sum of the two. The orthogonality of the paper, maximise Σ c_i b_i, is the
    special case of the prices −c_i·b.

    Args:
        all_groups: every group of the network; those not `listed` are constants of the budgets.
        listed: the L groups to decide on.
        prices: of `weight_widths` and `activation_widths`.
        settings: budgets and candidates.
        fixed_activations: names of the groups whose activations keep 8 bits.
    """
    pins = pins_by_group(all_groups, settings.pins)
    act_widths = activation_widths(settings)
    columns = [
        (width, act)
        for width in weight_widths(listed, settings)
        for act in act_widths or (settings.act_bits,)
    ]

    def allows(group: Group, width: int, act: int) -> bool:
        weights = (pins[group.name],) if group.name in pins else settings.widths
        activations = settings.act_widths or (settings.act_bits,)
        if settings.act_widths and group.name in fixed_activations:
            activations = (PINNED_BITS,)
        return width in weights and act in activations

    table = prices.weights
    if act_widths:
        both = prices.weights[:, :, None] + prices.activations[:, None, :]
        table = both.reshape(len(listed), -1)
    return Program(
        price=np.asarray(table, dtype=np.float64),
        log_scale=prices.log_scale,
        widths=tuple(width for width, _ in columns),
        allowed=np.array([[allows(group, *column) for column in columns] for group in listed]),
        budgets=_budgets(all_groups, listed, columns, settings, pins),
        names=tuple(group.name for group in listed),
        act_widths=tuple(act for _, act in columns) if act_widths else (),
    )


def _pins_of(listed: Sequence[Group], pins: Mapping[str, int]) -> dict[str, int]:
    layers = {layer for group in listed for layer in group.layers}
    return {layer: width for layer, width in pins.items() if layer in layers}


def _budgets(
    all_groups: Sequence[Group],
    listed: Sequence[Group],
    columns: Sequence[tuple[int, int]],
    settings: SearchSettings,
    pins: Mapping[str, int],
) -> tuple[Budget, ...]:
    names = {group.name for group in listed}
    fixed = [(g, pins.get(g.name, PINNED_BITS)) for g in all_groups if g.name not in names]

    def budget(
        name: str, unit: str, limit: float, per_unit: int, cost: Callable[[Group, int, int], int]
    ) -> Budget:
        table = [[cost(group, width, act) for width, act in columns] for group in listed]
        return Budget(
            name=name,
            cost=np.array(table, dtype=np.int64),
            limit=math.floor(limit * per_unit),
            constant=sum(cost(group, width, PINNED_BITS) for group, width in fixed),
            unit=unit,
            per_unit=per_unit,
        )

    budgets = []
    if settings.size_mb is not None:
        budgets.append(
            budget("size", "MB", settings.size_mb, BITS_PER_MB, lambda g, w, _: g.params * w)
        )
    if settings.bops_g is not None:
        budgets.append(budget("BOPs", "G", settings.bops_g, 10**9, lambda g, w, a: g.ops * w * a))
    if settings.latency is not None and settings.latency_ms is not None:
        table = settings.latency
        budgets.append(
            budget(
                "latency",
                "ms",
                settings.latency_ms,
                NANOSECONDS_PER_MS,
                lambda g, w, _: table.cost(g, w),
            )
        )
    return tuple(budgets)
