"""HAWQ's dictionaries of bit widths, fitted to any network by its structure.

HAWQ-V3 names what it quantizes after stages and units (`stage2.unit1.quant_convbn1: 7`), whatever
the network calls its modules. Units are the network's blocks in execution order.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ompq.bitconfig import Assignment
from ompq.errors import OmpqError
from ompq.graph import Group, NetworkGraph
from ompq.widths import PIXEL_BITS, SUM_BITS, check_widths

DEFAULT_BITS = 8
_UNIT = re.compile(r"(stage(\d+)\.unit(\d+))\.(quant_\w+)")
_STEM = re.compile(r"quant_init\w*convbn")
_FINAL = re.compile(r"quant_final\w*convbn")
_WEIGHT = re.compile(r"quant_convbn(\d*)")
_READ = re.compile(r"quant_act(\d*)")


def read_dictionary(text: str) -> dict[str, int] | None:
    """A dictionary of widths, given as a Python literal or as a JSON file; None for anything else.

    Raises:
        OmpqError: it looks like one and is not, or holds something else than widths.
    """
    stripped = text.strip()
    if stripped.startswith("{"):
        try:
            found = ast.literal_eval(stripped)
        except (ValueError, SyntaxError) as error:
            raise OmpqError(f"{stripped[:60]!r} is not a dictionary of bit widths") from error
    elif stripped.endswith(".json") and Path(stripped).is_file():
        try:
            found = json.loads(Path(stripped).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OmpqError(f"{stripped} cannot be read: {error}") from error
    else:
        return None
    if not isinstance(found, dict) or "format" in found:
        return None
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


def assignment_of_names(named: Mapping[str, int], graph: NetworkGraph) -> Assignment:
    """Widths of every layer of a network from a HAWQ dictionary; what it does not name gets 8.

    Raises:
        OmpqError: an entry that fits nothing (it is named), another number of units, a width
            outside 2..8, or sums that are not of 16 bits.
    """
    stem, units, final, classifier = _structure(graph, any(map(_FINAL.fullmatch, named)))
    of_unit = _numbered(named, units)
    weights: dict[str, int] = {}
    reads: dict[str, int] = {}
    for name, width in named.items():
        found = _UNIT.fullmatch(name)
        unit = units[of_unit[found[1]]] if found else None
        entry = found[4] if found else name
        fitting = _fit(entry, unit, stem, final, classifier)
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
    return _assignment(graph, weights, reads)


def _structure(graph: NetworkGraph, has_final: bool) -> tuple[str, list[_Unit], str | None, str]:
    """Stem, units, the last convolution where it stands alone, classifier."""
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
    units = [
        _Unit(
            tuple(name for name in names if name not in tied),
            tuple(name for name in names if name in tied),
        )
        for names in body
    ]
    return stem, units, final, classifier


def _numbered(named: Mapping[str, int], units: list[_Unit]) -> dict[str, int]:
    """`stageS.unitU` → index among the units, in the order of S and U."""
    found = {m[1]: (int(m[2]), int(m[3])) for m in map(_UNIT.fullmatch, named) if m}
    if found and len(found) != len(units):
        raise OmpqError(
            f"the dictionary has {len(found)} units, this network has {len(units)} blocks"
        )
    return {name: index for index, name in enumerate(sorted(found, key=lambda name: found[name]))}


def _fit(
    entry: str, unit: _Unit | None, stem: str, final: str | None, classifier: str
) -> tuple[str, tuple[str, ...]] | None:
    """What an entry is about (weight, read, sum, input), and the layers that it is for."""
    if entry == "quant_act_int32":
        return "sum", ()
    if unit is None:
        return _fit_outside(entry, stem, final, classifier)
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


def _fit_outside(
    entry: str, stem: str, final: str | None, classifier: str
) -> tuple[str, tuple[str, ...]] | None:
    if entry == "quant_input":
        return "input", ()
    if _STEM.fullmatch(entry):
        return "weight", (stem,)
    if _FINAL.fullmatch(entry) and final is not None:
        return "weight", (final,)
    if entry.startswith("quant_act_before_final") and final is not None:
        return "read", (final,)
    if entry in ("quant_output", "quant_output_convbn"):
        return "weight", (classifier,)
    if entry in ("quant_act_output", "quant_act_after_final_block"):
        return "read", (classifier,)
    return None


def _assignment(
    graph: NetworkGraph, weights: Mapping[str, int], reads: Mapping[str, int]
) -> Assignment:
    """One group per layer, since the dictionary may give a shortcut bits of its own."""
    roles = {name: group.role for group in graph.groups for name in group.layers}
    groups = tuple(
        Group((name,), layer.nodes[-1], roles[name], layer.params, layer.ops)
        for name, layer in graph.layers.items()
    )
    activations = tuple(reads.get(name, DEFAULT_BITS) for name in graph.layers)
    body = [reads.get(name, DEFAULT_BITS) for name in graph.layers if roles[name] == "body"]
    return Assignment(
        groups,
        tuple(weights.get(name, DEFAULT_BITS) for name in graph.layers),
        tuple(roles[name] == "body" for name in graph.layers),
        max(set(body), key=body.count) if body else DEFAULT_BITS,
        group_act_bits=activations,
    )
