"""The memory of activations as budgets: one for every step that no other step dominates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mixed_bit.allocation.program import Budget
from ompq.activation_memory import BITS_PER_KB, find_value_widths
from ompq.assignment import PINNED_BITS
from ompq.graph import Group, NetworkGraph, Schedule, build_schedule
from ompq.graph.liveness import Step

# Every value whose width is chosen takes this much less than 8 bits when all are asked for it.
_NARROW = 2


@dataclass(frozen=True)
class MemoryModel:
    """What every step of a network takes, by the activation widths of its groups.

    Attributes:
        schedule: The steps, and the values that are live at each.
        fixed: Value → bits of one element, of the values whose width is not chosen.
        chosen: Value → index of a listed group that reads it, whose activation width is its own;
            of several that read it, which agree, the first.
    """

    schedule: Schedule
    fixed: Mapping[str, int]
    chosen: Mapping[str, int]

    @classmethod
    def of_one_width(
        cls,
        graph: NetworkGraph,
        listed: Sequence[Group],
        act_bits: int,
        schedule: Schedule | None = None,
    ) -> MemoryModel:
        """Take the memory of a network whose listed groups read one activation width.

        Args:
            graph: Float network.
            listed: Groups with an entry in the bit list; the others read 8 bits.
            act_bits: The width.
            schedule: Schedule of the network, where it is known.
        """
        schedule = schedule or build_schedule(graph)
        widths = find_value_widths(graph, schedule, _spread(graph, listed, act_bits))
        return cls(schedule, widths, {})

    @classmethod
    def of_choice(
        cls,
        graph: NetworkGraph,
        listed: Sequence[Group],
        readers: Mapping[str, Sequence[int]],
    ) -> MemoryModel:
        """Take the memory of a network whose listed groups choose the widths of what they read.

        Args:
            graph: Float network.
            listed: Groups with an entry in the bit list; the others read 8 bits.
            readers: Node whose value has a width to choose → the listed groups that read it, by
                index.
        """
        schedule = build_schedule(graph)
        wide = find_value_widths(graph, schedule, _spread(graph, listed, PINNED_BITS))
        narrow = find_value_widths(graph, schedule, _spread(graph, listed, _NARROW))
        reading = {schedule.homes[site]: min(groups) for site, groups in readers.items()}
        # What others than layers read as well is stored at 8 bits, whatever layers make of it.
        chosen = {value: group for value, group in reading.items() if narrow[value] < wide[value]}
        fixed = {value: bits for value, bits in wide.items() if value not in chosen}
        return cls(schedule, fixed, chosen)

    def build_budgets(self, limit_kb: float, count: int, acts: Sequence[int]) -> tuple[Budget, ...]:
        """Build the budgets that keep every step within a limit.

        Args:
            limit_kb: The limit, KB (1024 bytes).
            count: Number of listed groups.
            acts: Activation width of each column of the program.
        """
        columns = np.array(acts, dtype=np.int64)
        budgets = []
        for step, (constant, elements) in self._dominant.items():
            row = np.zeros(count, dtype=np.int64)
            for group, number in elements.items():
                row[group] = number
            budgets.append(
                Budget(
                    name="activation memory",
                    field="act_memory_kb",
                    cost=row[:, None] * columns[None],
                    limit=int(limit_kb * BITS_PER_KB),
                    constant=constant,
                    unit="KB",
                    per_unit=BITS_PER_KB,
                    place=step.name,
                )
            )
        return tuple(budgets)

    @cached_property
    def _dominant(self) -> dict[Step, tuple[int, dict[int, int]]]:
        """Find the steps that no other one dominates: bits of fixed values, elements by group."""
        groups = sorted(set(self.chosen.values()))
        columns = {group: place for place, group in enumerate(groups)}
        table = np.zeros((len(self.schedule.steps), 1 + len(groups)), dtype=np.int64)
        for row, step in zip(table, self.schedule.steps, strict=True):
            for value in step.live:
                elements = self.schedule.elements[value]
                if value in self.chosen:
                    row[1 + columns[self.chosen[value]]] += elements
                else:
                    row[0] += elements * self.fixed[value]
        return {
            self.schedule.steps[index]: (
                int(table[index, 0]),
                {group: int(table[index, 1 + place]) for group, place in columns.items()},
            )
            for index in find_undominated(table)
        }


def find_undominated(table: NDArray[np.int64]) -> list[int]:
    """Find the rows that no other row equals or exceeds in every column; of equals, the first.

    >>> find_undominated(np.array([[1, 5], [3, 3], [3, 3], [2, 3]]))
    [0, 1]
    """
    kept: list[int] = []
    # The largest first: what dominates a row has a larger sum, or is equal.
    for index in sorted(range(len(table)), key=lambda i: (-int(table[i].sum()), i)):
        if not any((table[other] >= table[index]).all() for other in kept):
            kept.append(index)
    return sorted(kept)


def _spread(graph: NetworkGraph, listed: Sequence[Group], act_bits: int) -> dict[str, int]:
    """Give the layers of listed groups one activation width, all others 8 bits."""
    asked = {layer for group in listed for layer in group.layers}
    return {layer: act_bits if layer in asked else PINNED_BITS for layer in graph.layers}
