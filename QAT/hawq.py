"""HAWQ's dictionaries of bit widths, matched to any network by its structure.

HAWQ-V3 names what it quantizes after stages and units (`stage2.unit1.quant_convbn1: 7`), whatever
the network calls its modules. Units are the network's blocks in execution order.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ompq.assignment import Assignment
from ompq.cost import PIXEL_BITS, SUM_BITS, check_widths
from ompq.errors import OmpqError
from ompq.files import read_json
from ompq.graph import Group, NetworkGraph
from ompq.graph.network import account_for_rest, assign_products

DEFAULT_BITS = 8
_UNIT = re.compile(r"(stage(\d+)\.unit(\d+))\.(quant_\w+)")
_STEM = re.compile(r"quant_init\w*convbn")
_FINAL = re.compile(r"quant_final\w*convbn")
_WEIGHT = re.compile(r"quant_convbn(\d*)")
_READ = re.compile(r"quant_act(\d*)")


def read_dictionary(text: str) -> dict[str, int] | None:
    """Read a dictionary of widths, and run nothing that is in it.

    Args:
        text: Python literal, or path of a JSON file.

    Returns:
        Name → width; None where `text` is something else.

    Raises:
        OmpqError: The text looks like a dictionary and is none, or holds something else than
            widths.

    >>> read_dictionary("{'quant_input': 8, 'stage1.unit1.quant_convbn1': 4}")
    {'quant_input': 8, 'stage1.unit1.quant_convbn1': 4}
    >>> read_dictionary("uniform4") is None
    True
    """
    stripped = text.strip()
    if stripped.startswith("{"):
        try:
            found = ast.literal_eval(stripped)
        except (ValueError, SyntaxError) as error:
            raise OmpqError(f"{stripped[:60]!r} is not a dictionary of bit widths") from error
    elif stripped.endswith(".json") and Path(stripped).is_file():
        found = read_json(stripped, "bit_cfg")
    else:
        return None
    if not isinstance(found, dict) or {"format", "groups"} & set(found):
        return None
    if not found:
        raise OmpqError("the dictionary of bit widths is empty")
    _check_numbers(found)
    return {str(name): int(width) for name, width in found.items()}


def _check_numbers(found: Mapping[Any, Any]) -> None:
    for name, width in found.items():
        if not isinstance(width, int) or isinstance(width, bool):
            raise OmpqError(f"the bit width of {name} is {width!r}; it must be a whole number")


@dataclass(frozen=True)
class _Unit:
    """The layers of a block: along its main path, and its projection shortcuts."""

    main: tuple[str, ...]
    shortcuts: tuple[str, ...]


@dataclass(frozen=True)
class _Structure:
    """A network's layers by the roles that HAWQ names.

    `final` is the last convolution before the classifier, where it stands alone.
    """

    stem: str
    units: tuple[_Unit, ...]
    final: str | None
    classifier: str


def match_dictionary(named: Mapping[str, int], graph: NetworkGraph) -> Assignment:
    """Return the widths that a HAWQ dictionary gives to every layer of a network.

    Args:
        named: HAWQ's name → width; what it does not name gets 8 bits.
        graph: Network to match the names to.

    Raises:
        OmpqError: An entry fits nothing (it is named), the network has another number of units,
            a width is outside 2 to 8, or sums are not of 16 bits.
    """
    structure = _find_structure(graph, any(map(_FINAL.fullmatch, named)))
    numbers = _number_units(named, len(structure.units))
    weights: dict[str, int] = {}
    reads: dict[str, int] = {}
    for name, width in named.items():
        found = _UNIT.fullmatch(name)
        unit = structure.units[numbers[found[1]]] if found else None
        entry = found[4] if found else name
        fitting = _match_entry(entry, unit, structure)
        if fitting is None:
            raise OmpqError(
                f"{name} of the dictionary fits nothing in this network"
                + (f"; that unit has the layers {', '.join(unit.main)}" if unit else "")
            )
        kind, layers = fitting
        expected = {"sum": SUM_BITS, "input": PIXEL_BITS}.get(kind)
        if expected is not None and width != expected:
            raise OmpqError(f"{name} is {width} bits; sums have {SUM_BITS}, images {PIXEL_BITS}")
        if kind != "sum":
            check_widths([width], f"{name} of the dictionary")
        (weights if kind == "weight" else reads).update(dict.fromkeys(layers, width))
    return _build_assignment(graph, weights, reads)


def _find_structure(graph: NetworkGraph, has_final: bool) -> _Structure:
    # Layers that share their width with an earlier one are projections beside the main path.
    tied = {name for group in graph.groups for name in group.layers[1:]}
    owner = {call: name for name, layer in graph.layers.items() for call in layer.nodes}
    roles = {name: group.role for group in graph.groups for name in group.layers}
    blocks = [tuple(dict.fromkeys(owner[call] for call in block.layers)) for block in graph.blocks]
    body = [names for names in blocks if names and all(roles[name] == "body" for name in names)]
    stem = next(iter(graph.layers))
    classifier = list(graph.layers)[-1]
    final = None
    if has_final and body and len(body[-1]) == 1:
        final = body.pop()[0]
    units = tuple(
        _Unit(
            tuple(name for name in names if name not in tied),
            tuple(name for name in names if name in tied),
        )
        for names in body
    )
    return _Structure(stem, units, final, classifier)


def _number_units(named: Mapping[str, int], count: int) -> dict[str, int]:
    """Return `stageS.unitU` → index among the `count` units, in the order of S and U."""
    found = {m[1]: (int(m[2]), int(m[3])) for m in map(_UNIT.fullmatch, named) if m}
    if found and len(found) != count:
        raise OmpqError(f"the dictionary has {len(found)} units, this network has {count} blocks")
    return {name: index for index, name in enumerate(sorted(found, key=lambda name: found[name]))}


def _match_entry(
    entry: str, unit: _Unit | None, structure: _Structure
) -> tuple[str, tuple[str, ...]] | None:
    """Return what an entry is about (weight, read, sum, input), and the layers that it is for.

    None where it fits nothing.
    """
    if entry == "quant_act_int32":
        return "sum", ()
    if unit is None:
        return _match_outside_units(entry, structure)
    if entry == "quant_identity_convbn":
        return ("weight", unit.shortcuts) if unit.shortcuts else None
    weight, read = _WEIGHT.fullmatch(entry), _READ.fullmatch(entry)
    if weight:
        place = int(weight[1] or 1) - 1
        return ("weight", (unit.main[place],)) if 0 <= place < len(unit.main) else None
    if read:
        place = int(read[1] or 0)
        if not 0 <= place < len(unit.main):
            return None
        first = unit.shortcuts if place == 0 else ()
        return "read", (unit.main[place], *first)
    return None


def _match_outside_units(entry: str, structure: _Structure) -> tuple[str, tuple[str, ...]] | None:
    final, classifier = structure.final, structure.classifier
    if entry == "quant_input":
        return "input", ()
    if _STEM.fullmatch(entry):
        return "weight", (structure.stem,)
    if _FINAL.fullmatch(entry) and final is not None:
        return "weight", (final,)
    if entry.startswith("quant_act_before_final") and final is not None:
        return "read", (final,)
    if entry in ("quant_output", "quant_output_convbn"):
        return "weight", (classifier,)
    if entry in ("quant_act_output", "quant_act_after_final_block"):
        return "read", (classifier,)
    return None


def _build_assignment(
    graph: NetworkGraph, weights: Mapping[str, int], reads: Mapping[str, int]
) -> Assignment:
    # One group per layer, since the dictionary may give a shortcut bits of its own.
    roles = {name: group.role for group in graph.groups for name in group.layers}
    groups = tuple(
        Group((name,), layer.nodes[-1], roles[name], layer.params, layer.ops)
        for name, layer in graph.layers.items()
    )
    groups = assign_products(account_for_rest(groups, graph.parameters), graph.module, graph.layers)
    activations = tuple(reads.get(name, DEFAULT_BITS) for name in graph.layers)
    body = [reads.get(name, DEFAULT_BITS) for name in graph.layers if roles[name] == "body"]
    return Assignment(
        groups,
        tuple(weights.get(name, DEFAULT_BITS) for name in graph.layers),
        tuple(roles[name] == "body" for name in graph.layers),
        max(set(body), key=body.count) if body else DEFAULT_BITS,
        group_act_bits=activations,
    )
