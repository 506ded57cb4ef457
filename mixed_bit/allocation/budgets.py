"""Budgets in whole numbers: bits of size, bit operations, nanoseconds of latency."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from mixed_bit.allocation.program import Budget
from mixed_bit.latency.table import NANOSECONDS_PER_MS
from mixed_bit.settings import SearchSettings
from ompq.assignment import PINNED_BITS
from ompq.cost import BITS_PER_MB, group_bops, size_bits
from ompq.graph import Group

# (group, weight width, activation width) → its cost, a whole number.
GroupCost = Callable[[Group, int, int], int]


def build_budgets(
    settings: SearchSettings,
    listed: Sequence[Group],
    fixed: Sequence[tuple[Group, int]],
    columns: Sequence[tuple[int, int]],
) -> tuple[Budget, ...]:
    """Build every budget that the settings give, with what each group costs in each column.

    Args:
        settings: Budgets in MB, 10⁹ bit operations and milliseconds.
        listed: The L groups to decide on.
        fixed: The other groups with their weight widths; their activations have 8 bits.
        columns: K pairs of a weight and an activation width.
    """

    def make_budget(name: str, unit: str, field: str, per_unit: int, cost: GroupCost) -> Budget:
        table = [[cost(group, width, act) for width, act in columns] for group in listed]
        return Budget(
            name=name,
            cost=np.array(table, dtype=np.int64),
            limit=math.floor(getattr(settings, field) * per_unit),
            constant=sum(cost(group, width, PINNED_BITS) for group, width in fixed),
            unit=unit,
            per_unit=per_unit,
            field=field,
        )

    found = []
    if settings.size_mb is not None:
        found.append(
            make_budget("size", "MB", "size_mb", BITS_PER_MB, lambda g, w, _: size_bits([g], [w]))
        )
    if settings.bops_g is not None:
        found.append(make_budget("BOPs", "G", "bops_g", 10**9, group_bops))
    table = settings.latency_table
    if table is not None and settings.latency_ms is not None:
        found.append(
            make_budget(
                "latency", "ms", "latency_ms", NANOSECONDS_PER_MS, lambda g, w, _: table.cost(g, w)
            )
        )
    return tuple(found)
