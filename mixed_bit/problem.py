"""What a search decides: which groups of a network get which of their widths, within the budgets.

Built once from a network and the user's settings, and asked by everything that follows: the
sensitivities are measured for its groups at its widths, the program is made of them, and the
program's answer becomes the widths of the whole network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mixed_bit.allocation.activation_memory import MemoryModel
from mixed_bit.allocation.budgets import build_budgets
from mixed_bit.allocation.program import Allocation, Budget, Program
from mixed_bit.allocation.shared_activations import solve_with_shared_activations
from mixed_bit.allocation.solve import solve
from mixed_bit.choices import Choices
from mixed_bit.sensitivity.base import Sensitivity, find_chosen_sites
from mixed_bit.settings import SearchSettings
from ompq.assignment import PINNED_BITS, QUANT_TYPES, Assignment, uniform
from ompq.errors import OmpqError
from ompq.graph import Group, NetworkGraph
from ompq.quantized import make_quantizable


@dataclass(frozen=True)
class Problem:
    """The groups of a network to choose widths for, and the widths that each may get.

    Attributes:
        graph: The network.
        settings: What the user asks: metric, budgets, candidate widths.
        listed: The L groups that have an entry in the bit list, in execution order.
        choices: The weight widths that each group may get.
        widths: All weight widths that some listed group may get, ascending.
        act_widths: All activation widths, the 8 bits of the images included; empty where there is
            nothing to choose.
        readers: For every value whose width is chosen, the listed groups that read it, by index.
        memory: What activations take; None where no budget asks.
    """

    graph: NetworkGraph
    settings: SearchSettings
    listed: tuple[Group, ...]
    choices: Choices
    widths: tuple[int, ...]
    act_widths: tuple[int, ...]
    readers: tuple[tuple[int, ...], ...]
    memory: MemoryModel | None = None

    @classmethod
    def build(cls, graph: NetworkGraph, settings: SearchSettings) -> Problem:
        """Find the groups and widths that `settings` ask about.

        Raises:
            OmpqError: No group has an entry in the bit list, a layer that is named is not there,
                or tied layers are to have several widths.
        """
        listed = _listed_groups(graph.groups, settings.quant_type)
        choices = Choices.read(graph, settings)
        widths = _list_widths(listed, choices, settings)
        act_widths = _list_act_widths(settings)
        sites: dict[str, tuple[int, ...]] = {}
        if act_widths:
            network = make_quantizable(graph, uniform(graph.groups, max(widths)))
            sites = find_chosen_sites(network, listed)
        memory = None
        if settings.act_memory_kb is not None and settings.act_widths:
            memory = MemoryModel.of_choice(graph, listed, sites)
        elif settings.act_memory_kb is not None:
            memory = MemoryModel.of_one_width(graph, listed, settings.act_bits)
        readers = tuple(sites.values())
        return cls(graph, settings, listed, choices, widths, act_widths, readers, memory)

    @property
    def pins(self) -> Mapping[str, int]:
        """Return the widths that the user fixed, by the name of the group."""
        return self.choices.pins

    def with_settings(self, settings: SearchSettings) -> Problem:
        """Return the problem under other budgets, another metric or solver."""
        return replace(self, settings=settings)

    def at_size(self, size_mb: float) -> Problem:
        """Return the problem with another size budget, MB (2²⁰ bytes)."""
        return self.with_settings(replace(self.settings, size_mb=size_mb))

    def loosen(self, settings: SearchSettings) -> Problem:
        """Return the problem with other widths or pins; what is chosen of activations stays."""
        choices = Choices.read(self.graph, settings)
        memory = self.memory
        if memory is not None and settings.act_bits != self.settings.act_bits:
            memory = MemoryModel.of_one_width(
                self.graph, self.listed, settings.act_bits, memory.schedule
            )
        return replace(
            self,
            settings=settings,
            choices=choices,
            widths=_list_widths(self.listed, choices, settings),
            act_widths=_list_act_widths(settings),
            memory=memory,
        )

    def build_empty_program(self) -> Program:
        """Write down the program before anything is measured: budgets, and no sensitivities."""
        nothing = Sensitivity(
            weights=np.zeros((len(self.listed), len(self.widths))),
            activations=np.zeros((len(self.listed), len(self.act_widths))),
            log_scale=np.zeros(len(self.listed)),
            forward_passes=0.0,
        )
        return self.build_program(nothing)

    def build_program(self, sensitivity: Sensitivity) -> Program:
        """Write down: minimise the sum of the groups' sensitivities under every budget.

        A column is a weight width, or a weight and an activation width where both are chosen; its
        sensitivity is the sum of the two. The paper's objective, maximise Σ c_i b_i, is the special
        case of the sensitivities −c_i·b.

        Args:
            sensitivity: Of the listed groups at `widths` and `act_widths`.
        """
        columns = self._columns()
        allowed = [[self._allows(group, *column) for column in columns] for group in self.listed]
        return Program(
            sensitivity=sensitivity.by_column(),
            log_scale=sensitivity.log_scale,
            widths=tuple(width for width, _ in columns),
            allowed=np.array(allowed),
            budgets=self._build_budgets(columns),
            names=tuple(group.name for group in self.listed),
            act_widths=tuple(act for _, act in columns) if self.act_widths else (),
        )

    def solve(self, program: Program) -> Allocation:
        """Choose the widths of the listed groups by the solver of the settings.

        Groups that read one value get one activation width, since it is quantized once.

        Raises:
            OmpqError: A budget is infeasible (names the smallest feasible value).
        """
        solver, rounding = self.settings.solver, self.settings.rounding
        if self.act_widths:
            return solve_with_shared_activations(program, self.readers, solver, rounding)
        return solve(program, solver, rounding)

    def assign(self, allocation: Allocation) -> Assignment:
        """Spread the widths of the listed groups over the whole network; the others keep theirs."""
        groups = self.graph.groups
        found = {g.name: width for g, width in zip(self.listed, allocation.bits, strict=True)}
        widths = tuple(found.get(g.name, self.pins.get(g.name, PINNED_BITS)) for g in groups)
        in_list = tuple(group.name in found for group in groups)
        if not allocation.act_bits:
            return Assignment(groups, widths, in_list, self.settings.act_bits)
        chosen = {g.name: act for g, act in zip(self.listed, allocation.act_bits, strict=True)}
        acts = tuple(chosen.get(g.name, PINNED_BITS) for g in groups)
        return Assignment(
            groups, widths, in_list, act_bits=max(chosen.values()), group_act_bits=acts
        )

    def _columns(self) -> list[tuple[int, int]]:
        """Return every pair of a weight and an activation width that is to be decided on."""
        acts = self.act_widths or (self.settings.act_bits,)
        return [(width, act) for width in self.widths for act in acts]

    def _build_budgets(self, columns: Sequence[tuple[int, int]]) -> tuple[Budget, ...]:
        found = build_budgets(self.settings, self.listed, self._fixed(), columns)
        limit = self.settings.act_memory_kb
        if self.memory is None or limit is None:
            return found
        acts = [act for _, act in columns]
        return (*found, *self.memory.build_budgets(limit, len(self.listed), acts))

    def _allows(self, group: Group, width: int, act: int) -> bool:
        return width in self.choices.widths[group.name] and act in self._activations_of(group)

    def _activations_of(self, group: Group) -> tuple[int, ...]:
        if not self.settings.act_widths:
            return (self.settings.act_bits,)
        # The images, and what a pinned layer reads too, keep their 8 bits.
        chosen = {index for readers in self.readers for index in readers}
        is_chosen = self.listed.index(group) in chosen
        return self.settings.act_widths if is_chosen else (PINNED_BITS,)

    def _fixed(self) -> list[tuple[Group, int]]:
        """Return the groups outside of the list with their widths: constants of the budgets."""
        listed = {group.name for group in self.listed}
        others = [group for group in self.graph.groups if group.name not in listed]
        return [(group, self.choices.widths[group.name][0]) for group in others]


def _list_widths(
    listed: Sequence[Group], choices: Choices, settings: SearchSettings
) -> tuple[int, ...]:
    """List the weight widths to decide on; without a target all that the settings name."""
    allowed = {width for group in listed for width in choices.widths[group.name]}
    named = settings.widths if settings.target is None else ()
    return tuple(sorted({*named, *allowed}))


def _list_act_widths(settings: SearchSettings) -> tuple[int, ...]:
    """List the activation widths to decide on, with the 8 bits of what has no choice."""
    return tuple(sorted({*settings.act_widths, PINNED_BITS})) if settings.act_widths else ()


def _listed_groups(groups: Sequence[Group], quant_type: str) -> tuple[Group, ...]:
    """Return the groups that have an entry in the bit list of this quantization type."""
    listed = tuple(group for group in groups if QUANT_TYPES[quant_type].takes_part(group))
    if not listed:
        raise OmpqError(
            f"{quant_type} pins the first and the last layer and this network has no other; "
            "use `quant_type` PTQ"
        )
    return listed
