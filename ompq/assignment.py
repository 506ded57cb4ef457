"""The bit widths of a network: which group gets which width, what that costs, and its JSON file.

An `Assignment` belongs to the groups of one network; a `BitConfig` is the content of a
`bit_config.json`, which finds the groups again by the names of their layers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import bit_config
from ompq.bit_import import LayerBits, read_layer_bits
from ompq.cost import bops, check_widths, float_size_mb, size_mb
from ompq.errors import OmpqError
from ompq.files import read_json, write_json
from ompq.graph import Group, NetworkGraph
from ompq.schemes import find_published_ops, look_up

FORMAT = "ompq-bit-config/1"
FILE = "bit_config.json"
PINNED_BITS = 8
DEFAULT_ACT_BITS = 8
# A list as shells and tables write it: "4,3,8", "4 3 8", "[4 3 8]".
_BARE_LIST = re.compile(r"(\[\s*)?\d+(\s+\d+|\s*,\s*\d+)+(?(1)\s*\])")


@dataclass(frozen=True)
class QuantType:
    """A quantization type: its candidate widths, and the roles that stay out of its bit lists.

    Attributes:
        name: `QAT` or `PTQ`.
        candidates: Weight widths that a search chooses from.
        pinned_roles: Roles of the groups that have no entry in a bit list and keep 8 bits.
    """

    name: str
    candidates: tuple[int, ...]
    pinned_roles: frozenset[str]

    def takes_part(self, group: Group) -> bool:
        """Tell whether a group has an entry in the bit list (and a feature in the matrix)."""
        return group.role not in self.pinned_roles


QUANT_TYPES = {
    "QAT": QuantType("QAT", (4, 5, 6, 7, 8), frozenset({"stem", "classifier"})),
    "PTQ": QuantType("PTQ", (2, 3, 4), frozenset()),
}


@dataclass(frozen=True)
class Assignment:
    """Weight and activation widths of all groups of a network.

    Attributes:
        groups: Groups of the network, in execution order.
        widths: Weight width of each group.
        listed: Whether each group has an entry in the bit list.
        act_bits: Activation width that was asked for; groups without an entry keep 8.
        published_ops: Operations that a published scheme counted otherwise than `ompq.cost`, by
            the name of the group.
        group_act_bits: Activation width of each group; None where `act_bits` decides.

    Raises:
        OmpqError: a width outside 2..8.
    """

    groups: tuple[Group, ...]
    widths: tuple[int, ...]
    listed: tuple[bool, ...]
    act_bits: int
    published_ops: Mapping[str, int] = field(default_factory=dict)
    group_act_bits: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_widths(self.widths, "weight bits")
        check_widths([self.act_bits], "`act_bits`")
        check_widths(self.activations, "activation bits")

    @property
    def bits(self) -> list[int]:
        """Return the bit list: the weight widths of the groups that have an entry in it."""
        return [width for width, listed in zip(self.widths, self.listed, strict=True) if listed]

    @property
    def activations(self) -> tuple[int, ...]:
        """Return the activation width of every group."""
        if self.group_act_bits is not None:
            return self.group_act_bits
        return tuple(self.act_bits if listed else PINNED_BITS for listed in self.listed)

    @property
    def size_mb(self) -> float:
        """Return the model size in MB (2²⁰ bytes)."""
        return size_mb(self.groups, self.widths)

    @property
    def float_size_mb(self) -> float:
        """Return the size of the float network in MB (2²⁰ bytes)."""
        return float_size_mb(self.groups)

    @property
    def bops_g(self) -> float:
        """Return the bit operations for one image, in units of 10⁹."""
        return bops(self.groups, self.widths, self.activations) / 1e9

    @property
    def published_bops_g(self) -> float:
        """Return the bit operations that the paper counts: `bops_g` but for its known miscounts."""
        groups = [replace(g, ops=self.published_ops.get(g.name, g.ops)) for g in self.groups]
        return bops(groups, self.widths, self.activations) / 1e9

    def layer_bits(self) -> dict[str, int]:
        """Return the weight width of every layer, tied layers included."""
        return self._spread(self.widths)

    def layer_act_bits(self) -> dict[str, int]:
        """Return the width that every layer and every product of two values (its node) reads."""
        pairs = zip(self.groups, self.activations, strict=True)
        of_products = {name: width for group, width in pairs for name in group.products}
        return of_products | self._spread(self.activations)

    def _spread(self, widths: Sequence[int]) -> dict[str, int]:
        """Give every layer the width of its group."""
        pairs = zip(self.groups, widths, strict=True)
        return {layer: width for group, width in pairs for layer in group.layers}


def check_assignment(given: object, graph: NetworkGraph) -> None:
    """Refuse what is no assignment, or one of another network than `graph`.

    Raises:
        OmpqError: Says how an assignment is made, or which layer differs.
    """
    if isinstance(given, Assignment):
        layers = {layer for group in given.groups for layer in group.layers}
        differing = sorted(layers ^ set(graph.layers))
        if differing:
            raise OmpqError(
                f"`assignment` is of another network: layer {differing[0]} differs; make it anew"
            )
        if given.float_size_mb != float_size_mb(graph.groups):
            raise OmpqError(
                "`assignment` is of another network: its layers are of other sizes; make it anew"
            )
        return
    raise OmpqError(
        f"`assignment` is a {type(given).__name__}; make one of a bit list by ompq.assign(groups, "
        "quant_type, bits, act_bits), with the groups of ompq.trace(network, shape), or take that "
        "of a search"
    )


def assign(
    groups: Sequence[Group], quant_type: str, bits: Sequence[int], act_bits: int
) -> Assignment:
    """Spread a bit list over the groups of a network; pinned groups get 8 bits.

    Args:
        groups: Groups of the network, in execution order.
        quant_type: `QAT` or `PTQ`, which decides the groups that have an entry in the list.
        bits: Weight widths, one for each group that has an entry.
        act_bits: Activation width of the groups that have an entry.

    Raises:
        OmpqError: the list has the wrong length (the groups are named) or a width outside 2..8.
    """
    rule = QUANT_TYPES[quant_type]
    listed = tuple(rule.takes_part(group) for group in groups)
    names = [group.name for group, has_entry in zip(groups, listed, strict=True) if has_entry]
    if len(bits) != len(names):
        raise OmpqError(
            f"the bit list has {len(bits)} entries where {quant_type} of this network needs "
            f"{len(names)}, one for each of: {', '.join(names)}"
        )
    check_widths(bits, "bit list")
    remaining = iter(bits)
    widths = tuple(next(remaining) if has_entry else PINNED_BITS for has_entry in listed)
    return Assignment(tuple(groups), widths, listed, act_bits)


def uniform(groups: Sequence[Group], width: int, act_bits: int = DEFAULT_ACT_BITS) -> Assignment:
    """Give one width to every group but the stem and the classifier, which get 8 bits.

    Args:
        groups: Groups of the network, in execution order.
        width: Weight width of the groups between stem and classifier.
        act_bits: Activation width of the groups between stem and classifier.

    Raises:
        OmpqError: a width outside 2..8.
    """
    check_widths([width], "uniform width")
    listed = tuple(group.role == "body" for group in groups)
    widths = tuple(width if body else PINNED_BITS for body in listed)
    return Assignment(tuple(groups), widths, listed, act_bits)


def resolve(
    text: str, groups: Sequence[Group], quant_type: str, *, act_bits: int | None = None
) -> Assignment:
    """Return the assignment that a user names: a list, a file, a published scheme or `uniformN`.

    Args:
        text: A list `"[4, 3, …]"`, the path of a `bit_config.json`, of the folder that holds it or
            of another tool's file (see `ompq.bit_import`), or a scheme of `bit_config.py`.
        groups: Groups of the network that the assignment is for, in execution order.
        quant_type: `QAT` or `PTQ`, which decides the groups that a list covers.
        act_bits: Activation width; where None, that of the scheme or file, else 8.

    Raises:
        OmpqError: the text names nothing that can be read or found, the list has the wrong
            length, or a width is outside 2..8.
    """
    stripped = text.strip()
    if not stripped:
        raise OmpqError("the bit configuration is empty; give a list, a file, a scheme or uniformN")
    if _BARE_LIST.fullmatch(stripped):
        stripped = f"[{','.join(re.findall('[0-9]+', stripped))}]"
    if stripped.startswith(("[", "(")):
        chosen = DEFAULT_ACT_BITS if act_bits is None else act_bits
        return assign(groups, quant_type, _parse_list(stripped), chosen)
    imported = read_layer_bits(stripped)
    if imported is not None:
        return _import(imported, groups, quant_type, act_bits)
    if stripped.endswith((".json", ".csv")) or Path(stripped).is_file():
        return load(stripped).assignment(groups, act_bits)
    scheme = look_up(stripped, FILE)
    if isinstance(scheme, Path):
        return load(scheme).assignment(groups, act_bits)
    chosen = act_bits if act_bits is not None else scheme.act_bits or DEFAULT_ACT_BITS
    if isinstance(scheme, bit_config.Uniform):
        return uniform(groups, scheme.width, chosen)
    rule = QUANT_TYPES[scheme.quant_type]
    needed = sum(rule.takes_part(group) for group in groups)
    if needed != len(scheme.bits):
        raise OmpqError(
            f"{scheme.name} is for {scheme.network} ({scheme.quant_type}, {len(scheme.bits)} "
            f"groups); this network has {needed}; give a list, or uniformN"
        )
    return replace(
        assign(groups, scheme.quant_type, list(scheme.bits), chosen),
        published_ops=find_published_ops(groups, scheme),
    )


def _import(
    found: LayerBits, groups: Sequence[Group], quant_type: str, act_bits: int | None
) -> Assignment:
    """Assign the widths that another tool gave."""
    widths, reads = found.spread(groups, PINNED_BITS)
    listed = tuple(QUANT_TYPES[quant_type].takes_part(group) for group in groups)
    if act_bits is None and reads:
        return Assignment(tuple(groups), widths, listed, max(reads), group_act_bits=reads)
    chosen = found.find_act_bits() if act_bits is None else act_bits
    return Assignment(tuple(groups), widths, listed, chosen or DEFAULT_ACT_BITS)


def _parse_list(text: str) -> list[Any]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise OmpqError(
            f'bit list {text[:60]!r} is not a list; write it like "[4, 3, 8]"'
        ) from error
    if not isinstance(value, list | tuple):
        raise OmpqError(f'bit list {text[:60]!r} is not a list; write it like "[4, 3, 8]"')
    return list(value)


@dataclass(frozen=True)
class BitConfig:
    """A bit configuration that a search found, with all that made it: a `bit_config.json`.

    Attributes:
        model: Name of the network.
        quant_type: `QAT` or `PTQ`.
        bits: The bit list.
        groups: One JSON-ready mapping per group: its `layers`, its `bits`, `in_list` (whether the
            bit list has an entry for it) and what the search knew.
        act_bits: Activation width.
        model_size_mb: Model size in MB (2²⁰ bytes).
        bops_g: Bit operations for one image, in units of 10⁹.
        details: Further entries of the file, JSON-ready.
    """

    model: str
    quant_type: str
    bits: tuple[int, ...]
    groups: tuple[Mapping[str, Any], ...]
    act_bits: int
    model_size_mb: float
    bops_g: float
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `bit_config.json`, its keys in their stable order."""
        return {
            "format": FORMAT,
            "model": self.model,
            "quant_type": self.quant_type,
            "bits": list(self.bits),
            "groups": [dict(group) for group in self.groups],
            "act_bits": self.act_bits,
            "model_size_mb": self.model_size_mb,
            "bops_g": self.bops_g,
            **self.details,
        }

    def save(self, path: str | Path) -> None:
        """Write the configuration to a JSON file, all of it or nothing."""
        write_json(path, self.to_json())

    def assignment(self, groups: Sequence[Group], act_bits: int | None = None) -> Assignment:
        """Assign the widths of the configuration to the groups of a network.

        Args:
            groups: Groups of the network, in execution order.
            act_bits: One activation width instead of those of the configuration.

        Raises:
            OmpqError: the configuration is for a network with other layers.
        """
        widths = {frozenset(entry["layers"]): entry["bits"] for entry in self.groups}
        in_list = {frozenset(entry["layers"]): entry["in_list"] for entry in self.groups}
        keys = [frozenset(group.layers) for group in groups]
        foreign = [group.name for group, key in zip(groups, keys, strict=True) if key not in widths]
        if foreign or len(widths) != len(keys):
            raise OmpqError(
                f"the bit configuration is for {self.model} with {len(widths)} groups, this "
                f"network has {len(keys)}; search anew for this one"
                + (f"; it has no entry for {', '.join(foreign[:5])}" if foreign else "")
            )
        listed = tuple(in_list[key] for key in keys)
        bits = tuple(widths[key] for key in keys)
        check_widths(bits, f"bit configuration of {self.model}")
        chosen_act_bits = self.act_bits if act_bits is None else act_bits
        assignment = Assignment(tuple(groups), bits, listed, chosen_act_bits)
        if act_bits is not None or not self.details.get("act_candidates"):
            return assignment
        # The search chose activation widths too, one for each group.
        chosen = {frozenset(entry["layers"]): entry.get("act_bits", 0) for entry in self.groups}
        activations = tuple(chosen[key] for key in keys)
        check_widths(activations, f"activation bits of {self.model}")
        return replace(assignment, group_act_bits=activations)


_REQUIRED = {"model": str, "quant_type": str, "bits": list, "groups": list, "act_bits": int}


def _is_group(entry: Any) -> bool:
    """Tell whether an entry of a file names its layers, its width and its place in the list."""
    whole = isinstance(entry, dict) and {"layers", "bits", "in_list"} <= set(entry)
    layers = entry["layers"] if whole else None
    return isinstance(layers, list) and all(isinstance(name, str) for name in layers)


def load(path: str | Path) -> BitConfig:
    """Read a `bit_config.json`.

    Args:
        path: Path of the file.

    Raises:
        OmpqError: the file is missing, no JSON, of another format, or lacks entries.
    """
    content = read_json(path, "bit_cfg")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise OmpqError(
            f"{path} is not a bit configuration of format {FORMAT}, nor layers and their bits"
        )
    bad = [key for key, kind in _REQUIRED.items() if not isinstance(content.get(key), kind)]
    entries = content.get("groups") or []
    if bad or not all(map(_is_group, entries)):
        raise OmpqError(
            f"{path} lacks {', '.join(bad) or 'layers, bits or in_list of a group'}; search anew"
        )
    listed = [entry["bits"] for entry in entries if entry["in_list"]]
    if content["bits"] != listed:
        told = f"{path}: `bits` is {content['bits']}, and its groups have {listed}"
        raise OmpqError(f"{told}; change both, or give the list itself as `bit_cfg`")
    known = {"format", "model_size_mb", "bops_g", *_REQUIRED}
    return BitConfig(
        model=content["model"],
        quant_type=content["quant_type"],
        bits=tuple(content["bits"]),
        groups=tuple(entries),
        act_bits=content["act_bits"],
        model_size_mb=content.get("model_size_mb", float("nan")),
        bops_g=content.get("bops_g", float("nan")),
        details={key: value for key, value in content.items() if key not in known},
    )
