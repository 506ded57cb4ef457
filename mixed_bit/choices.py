"""Which widths every group may get: candidates for all, candidates by layer, and pins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mixed_bit.settings import SearchSettings
from ompq.assignment import PINNED_BITS, QUANT_TYPES
from ompq.errors import OmpqError
from ompq.graph import Group, NetworkGraph
from ompq.layer_patterns import match_layers
from ompq.target import Target, name_operation


@dataclass(frozen=True)
class Choices:
    """The widths that the groups of a network may get.

    Attributes:
        widths: Name of a group → the weight widths that it may get, ascending: one where it is
            pinned, or stands outside of the bit list.
        pins: Name of a group → the width that the user fixed for it.
        pinned_by: Name of a pinned group → the pattern that pins it.
    """

    widths: Mapping[str, tuple[int, ...]]
    pins: Mapping[str, int]
    pinned_by: Mapping[str, str]

    @classmethod
    def read(cls, graph: NetworkGraph, settings: SearchSettings) -> Choices:
        """Find the widths that settings give to every group of a network.

        Args:
            graph: The network.
            settings: Candidate widths, pins and target.

        Raises:
            OmpqError: A pattern matches no layer, or none that has a choice; patterns contradict
                each other in layers that are tied; a target leaves a layer without width.
        """
        groups = graph.groups
        layers = [layer for group in groups for layer in group.layers]
        pinned = match_layers(settings.pins, layers, "`pins`")
        by_group = {group.name: _read_pin(group, pinned) for group in groups}
        pins = {name: found for name, found in by_group.items() if found is not None}
        by_layer = match_layers(
            settings.candidate_bits_by_layer, layers, "`candidate_bits_by_layer`"
        )
        takes_part = QUANT_TYPES[settings.quant_type].takes_part
        _check_choice_is_left(groups, settings)
        widths: dict[str, tuple[int, ...]] = {}
        for group in groups:
            own = _read_candidates(group, by_layer)
            if group.name in pins:
                widths[group.name] = (pins[group.name][1],)
            elif not takes_part(group):
                widths[group.name] = (PINNED_BITS,)
            else:
                widths[group.name] = settings.widths if own is None else own
        if settings.target is not None:
            widths = {
                group.name: _keep_target(group, widths[group.name], graph, settings.target)
                for group in groups
            }
        return cls(
            widths,
            {name: width for name, (_, width) in pins.items()},
            {name: pattern for name, (pattern, _) in pins.items()},
        )


def _read_pin(group: Group, pinned: Mapping[str, tuple[str, int]]) -> tuple[str, int] | None:
    """Return the pattern that pins a group, and the width; None where it is not pinned.

    Raises:
        OmpqError: Layers of the group are pinned at several widths.
    """
    found = [(layer, *pinned[layer]) for layer in group.layers if layer in pinned]
    if not found:
        return None
    first, pattern, width = found[0]
    for layer, other, differing in found[1:]:
        if differing != width:
            raise OmpqError(
                f"`pins` {_tell(layer, other)}={differing}: tied to {first}, which is pinned at "
                f"{width}{_tell_pattern(first, pattern)}; tied layers have one width, pin them "
                "alike"
            )
    return pattern, width


def _read_candidates(
    group: Group, by_layer: Mapping[str, tuple[str, tuple[int, ...]]]
) -> tuple[int, ...] | None:
    """Return the widths that all patterns leave to the layers of a group; None without any.

    Raises:
        OmpqError: They leave none.
    """
    left: set[int] | None = None
    before: list[str] = []
    for layer in group.layers:
        if layer not in by_layer:
            continue
        pattern, widths = by_layer[layer]
        told = f"{_tell(layer, pattern)}={','.join(map(str, widths))}"
        if left is not None and not left & set(widths):
            raise OmpqError(
                f"`candidate_bits_by_layer` {told}: tied to {before[-1]}; tied layers have one "
                "width, give them one in common"
            )
        left = set(widths) if left is None else left & set(widths)
        before.append(told)
    return None if left is None else tuple(sorted(left))


def _keep_target(
    group: Group, widths: tuple[int, ...], graph: NetworkGraph, target: Target
) -> tuple[int, ...]:
    """Return the widths of a group that a target has for all of its layers.

    Raises:
        OmpqError: It has none of them.
    """
    left = set(widths)
    for layer in group.layers:
        operation = name_operation(graph.layer_module(layer))
        allowed = target.find_widths(operation)
        if not left & set(allowed):
            given, had = (", ".join(map(str, found)) for found in (sorted(left), allowed))
            raise OmpqError(
                f"target {target.name}: {layer} is to have {given} bits, {operation} may have "
                f"{had}; give it some of these by `candidate_bits`, `pins` or `quant_type`"
            )
        left &= set(allowed)
    return tuple(sorted(left))


def _check_choice_is_left(groups: Sequence[Group], settings: SearchSettings) -> None:
    """Refuse a pattern of widths whose layers all keep 8 bits."""
    rule = QUANT_TYPES[settings.quant_type]
    layers = [layer for group in groups for layer in group.layers]
    listed = {layer for group in groups if rule.takes_part(group) for layer in group.layers}
    for pattern in settings.candidate_bits_by_layer:
        if not listed & set(match_layers({pattern: None}, layers, "")):
            raise OmpqError(
                f"`candidate_bits_by_layer` {pattern}: {rule.name} keeps the first and the last "
                f"layer at {PINNED_BITS} bits; pin it by `pins`, or use `quant_type` PTQ"
            )


def _tell(layer: str, pattern: str) -> str:
    return layer if layer == pattern else f"{layer} ({pattern})"


def _tell_pattern(layer: str, pattern: str) -> str:
    return "" if layer == pattern else f" by {pattern}"
