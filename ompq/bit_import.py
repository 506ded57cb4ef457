"""Bit widths that other tools chose, read from their files and matched to a network's layers.

A file is known by its structure, never by its name:

    NNCF       `bitwidth_per_scope`, a list of [bits, scope], at any depth of its JSON
    ModelOpt   `quantized_layers` (layer → `quant_algo`, such as W4A8_AWQ), or `quant_cfg` (glob of
               quantizers → `num_bits`)
    MCT        `manual_weights_bit_width_selection_list`, or layer → `weights_n_bits` and
               `activation_n_bits`
    others     JSON of layer → bits; lines of layer,bits (or layer;bits) with a header or without
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ompq.bit_table import is_whole_number, read_bit_table
from ompq.errors import OmpqError
from ompq.graph import Group
from ompq.layer_names import match_names, match_quantizers

_WIDEST = 8
# Names of HAWQ's dictionaries, which are matched by structure instead.
_HAWQ = re.compile(r"(.*\.)?quant_\w+")
_ALGORITHM = re.compile(r"W(\d+)A(\d+)(?!.*(FP|MX)).*|INT(\d+)(?!.*(FP|MX)).*", re.IGNORECASE)
_WEIGHTS = ("weights_n_bits", "weight_bits", "weight_bit_width", "num_bits", "n_bits", "bits")
_READS = ("activation_n_bits", "activation_bits", "act_bits", "input_bits")
_SHOWN = 5


@dataclass
class LayerBits:
    """Widths that a file gives, by its own names of layers.

    Attributes:
        source: The file, for messages.
        weights: Name, or glob → weight width.
        reads: Name, or glob → width of what the layer reads.
        everywhere: Widths of activations that belong to no layer.
        by_quantizer: Whether the globs are of quantizers, some of which may be none here.
    """

    source: str
    weights: dict[str, int] = field(default_factory=dict)
    reads: dict[str, int] = field(default_factory=dict)
    everywhere: set[int] = field(default_factory=set)
    by_quantizer: bool = False

    def add(self, name: object, bits: object, acts: object = None) -> None:
        """Add a layer.

        Raises:
            OmpqError: The widths are none, or the layer has others already.
        """
        for kind, value in (("weights", bits), ("reads", acts)):
            if value is None:
                continue
            if type(value) is not int:
                raise OmpqError(
                    f"{self.source}: {name} has {value!r} bits; give a whole number from 2 to 8"
                )
            held = getattr(self, kind)
            if held.pop(str(name), value) != value:
                raise OmpqError(f"{self.source}: {name} is there twice; leave one out")
            held[str(name)] = value

    def match(self, layers: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
        """Match the names to the layers of a network.

        Args:
            layers: Names of all layers.

        Returns:
            Layer → weight width, for all; layer → width of what it reads, where that is told.

        Raises:
            OmpqError: A name fits no layer, or a layer has no name.
        """
        if self.by_quantizer:
            weights = match_quantizers(self.weights, layers, "weight_quantizer")
            reads = match_quantizers(self.reads, layers, "input_quantizer")
        else:
            weights = match_names(self.weights, layers, self.source)
            reads = match_names(self.reads, layers, self.source) if self.reads else {}
        missing = [layer for layer in layers if layer not in weights]
        if missing:
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            mend = "add a line for each, or one with a glob"
            if self.by_quantizer:
                mend = "every layer has 2 to 8 here, also one that is excluded or disabled there"
            raise OmpqError(
                f"{self.source} gives no bits to {', '.join(missing[:_SHOWN])}{more}; {mend}"
            )
        self._check(weights, "weight")
        # Wider ones are what other tools call unquantized.
        reads = {layer: bits for layer, bits in reads.items() if bits <= _WIDEST}
        self._check(reads, "activation")
        return weights, reads

    def spread(
        self, groups: Sequence[Group], usual: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Spread the widths over the groups of a network.

        Args:
            groups: Groups of the network.
            usual: Width of what a layer reads that the file does not tell of.

        Returns:
            Weight width of every group, and width of what it reads; nothing where none is told.

        Raises:
            OmpqError: Names do not match the network's, or tied layers have several widths.
        """
        weights, reads = self.match([layer for group in groups for layer in group.layers])
        for group in groups:
            for layer in group.layers[1:]:
                if weights[layer] != weights[group.name]:
                    raise OmpqError(
                        f"{self.source}: {layer} has {weights[layer]} bits and is tied to "
                        f"{group.name} with {weights[group.name]}; tied layers have one width"
                    )
        widths = tuple(weights[group.name] for group in groups)
        if not reads:
            return widths, ()
        acts = [max(reads.get(layer, usual) for layer in group.layers) for group in groups]
        return widths, tuple(acts)

    def find_act_bits(self) -> int | None:
        """Find the one width of activations that belong to no layer; None without any.

        Raises:
            OmpqError: There are several.
        """
        found = sorted(bits for bits in self.everywhere if bits <= _WIDEST)
        if len(found) > 1:
            raise OmpqError(
                f"{self.source} gives activations {' and '.join(map(str, found))} bits, by places "
                "that are no layers of this network; give one width by `act_bits`"
            )
        return found[0] if found else None

    def _check(self, widths: Mapping[str, int], kind: str) -> None:
        for layer, bits in widths.items():
            if not 2 <= bits <= _WIDEST:
                raise OmpqError(
                    f"{self.source}: {layer} has {kind} bits {bits!r}; bit widths are whole "
                    "numbers from 2 to 8"
                )


def read_layer_bits(path: str | Path) -> LayerBits | None:
    """Read the widths of layers from a file of another tool.

    Args:
        path: Path of the file.

    Returns:
        The widths; None where there is no such file, or none of a kind that is known here.

    Raises:
        OmpqError: It is of a known kind, and holds something else than widths.
    """
    # Unlike a path's own method, this takes any text, however long.
    if not os.path.isfile(path):
        return None
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        return None  # whoever reads it next says why
    found = LayerBits(f"`bit_cfg` {path}")
    try:
        content = json.loads(text, object_pairs_hook=partial(_take_unique, found.source))
    except (ValueError, RecursionError):
        return _read_lines(found, text)
    try:
        return _read_json(found, content) if isinstance(content, dict) else None
    except RecursionError as error:
        raise OmpqError(f"{found.source} is nested too deeply; write layers and bits") from error


def _take_unique(source: str, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary of JSON's pairs, of which JSON would take the last of each name.

    Raises:
        OmpqError: A name has several values.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found and found[name] != value:
            raise OmpqError(f"{source}: {name} is there twice; leave one out")
        found[name] = value
    return found


def _read_json(found: LayerBits, content: dict[str, Any]) -> LayerBits | None:
    scopes = _find_key(content, "bitwidth_per_scope")
    if scopes is not None:
        return _read_scopes(found, scopes)
    layers = _find_key(content, "quantized_layers")
    if isinstance(layers, dict):
        return _read_algorithms(found, layers)
    whole = content.get("quantization")
    if isinstance(whole, dict) and "quant_algo" in whole:
        return _exclude(_read_algorithms(found, {"*": whole}), whole.get("exclude_modules"))
    if "quant_cfg" in content:
        return _read_quantizers(found, content["quant_cfg"])
    selected = _find_key(content, "manual_weights_bit_width_selection_list")
    if selected is not None:
        acts = _find_key(content, "manual_activation_bit_width_selection_list")
        return _read_selections(found, selected, acts)
    if content and "format" not in content:
        return _read_layers(found, content)
    return None


def _find_key(content: object, key: str) -> Any:
    """Find the value of a key at any depth of JSON; None where it is nowhere."""
    if isinstance(content, dict):
        if key in content:
            return content[key]
        content = list(content.values())
    if isinstance(content, list):
        for part in content:
            if (value := _find_key(part, key)) is not None:
                return value
    return None


def _read_scopes(found: LayerBits, scopes: object) -> LayerBits:
    """Read NNCF's list of [bits, scope]; the names in brackets are the path of the module.

    `ResNet/Sequential[layer1]/BasicBlock[0]/NNCFConv2d[conv1]/conv2d_0|WEIGHT` is
    `layer1.0.conv1`; scopes of activations end with `|OUTPUT` or `|INPUT0`.
    """
    is_list = isinstance(scopes, list)
    for entry in scopes if isinstance(scopes, list) else []:
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], str):
            is_list = False
            break
        bits, scope = entry
        path = ".".join(re.findall(r"\[([^\]]*)\]", scope))
        place = scope.rpartition("|")[2].upper() if "|" in scope else ""
        of_weight = place.startswith("WEIGHT") or "WITH_WEIGHTS" in scope
        unmarked = not place and "TargetType" not in scope
        if path and (of_weight or unmarked):
            found.add(path, bits)
        elif type(bits) is int:
            found.everywhere.add(bits)
    if not is_list or not found.weights:
        raise OmpqError(
            f"{found.source}: bitwidth_per_scope holds no scopes of weights; write it as a list of "
            '[bits, "scope|WEIGHT"]'
        )
    return found


def _read_algorithms(found: LayerBits, layers: dict[str, Any]) -> LayerBits:
    """Read ModelOpt's layer → `quant_algo`."""
    for name, entry in layers.items():
        algorithm = entry.get("quant_algo") if isinstance(entry, dict) else entry
        matched = _ALGORITHM.fullmatch(str(algorithm))
        if matched is None:
            raise OmpqError(
                f"{found.source}: {name} has the format {algorithm}, which is not of whole "
                "numbers; give it bits from 2 to 8"
            )
        if matched[1]:
            found.add(name, int(matched[1]), int(matched[2]))
        else:
            # Of whole numbers alone at 8 bits; else activations stay as they are.
            bits = int(matched[4])
            weights_only = bits < _WIDEST or re.search("WO|WEIGHT", str(algorithm), re.IGNORECASE)
            found.add(name, bits, None if weights_only else bits)
    return found


def _exclude(found: LayerBits, excluded: object) -> LayerBits:
    """Take the widths of modules away, which stay in float there: names and globs of ModelOpt."""
    if not excluded:
        return found
    if not isinstance(excluded, list) or not all(isinstance(name, str) for name in excluded):
        raise OmpqError(
            f"{found.source}: exclude_modules is {excluded!r}; write a list of names, or []"
        )
    found.by_quantizer = True
    for widths in (found.weights, found.reads):
        # A name stands for what is in the module too.
        names = [name for each in excluded for name in (f"{each}.*_quantizer", f"{each}.*.*")]
        widths |= dict.fromkeys(names, 0) if widths else {}
    return found


def _read_quantizers(found: LayerBits, given: object) -> LayerBits:
    """Read ModelOpt's glob of quantizers → `num_bits`, as a dictionary or as a list in order."""
    found.by_quantizer = True
    for pattern, entry in _list_quantizers(found, given):
        if isinstance(entry, list) and any(isinstance(step, dict) for step in entry):
            raise OmpqError(
                f"{found.source}: {pattern} quantizes in several steps; give it one num_bits"
            )
        if pattern == "default" or not isinstance(entry, dict):
            continue
        bits = entry.get("num_bits")
        if entry.get("enable") is False:
            bits = 0
        elif bits is None:
            continue
        elif type(bits) is not int:
            raise OmpqError(
                f"{found.source}: {pattern} has num_bits {bits!r}, a format of floats; give whole "
                "numbers from 2 to 8"
            )
        of_input = pattern.rstrip("*").endswith("input_quantizer")
        of_weight = re.search(r"weight_quantizer(\.\d+)?$", pattern.rstrip("*"))
        for held, fits in ((found.weights, not of_input), (found.reads, not of_weight)):
            if fits:
                # The last one that fits decides.
                held.pop(pattern, None)
                held[pattern] = bits
    return found


def _list_quantizers(found: LayerBits, given: object) -> Iterator[tuple[str, Any]]:
    if isinstance(given, dict):
        yield from given.items()
        return
    for entry in given if isinstance(given, list) else [None]:
        if not isinstance(entry, dict) or "quantizer_name" not in entry:
            raise OmpqError(
                f"{found.source}: quant_cfg is no dictionary of quantizers; write "
                '{"*weight_quantizer": {"num_bits": 8}}'
            )
        own = entry.get("cfg")
        yield str(entry["quantizer_name"]), {**entry, **(own if isinstance(own, dict) else {})}


def _read_selections(found: LayerBits, weights: object, acts: object) -> LayerBits:
    """Read MCT's `BitWidthConfig`: filters by name, with the width of each."""
    for kind, entries in (("weights", weights), ("reads", acts)):
        for entry in entries if isinstance(entries, list) else []:
            chosen = entry.get("filter") if isinstance(entry, dict) else None
            name = chosen.get("node_name") if isinstance(chosen, dict) else chosen
            if not isinstance(name, str):
                raise OmpqError(
                    f"{found.source}: a selection of MCT has no node_name; name its layer"
                )
            bits = entry.get("bit_width")
            found.add(name, *((bits, None) if kind == "weights" else (None, bits)))
    return found


def _read_layers(found: LayerBits, content: dict[str, Any]) -> LayerBits | None:
    """Read JSON of layer → bits, or → what MCT and others call the widths of a layer."""
    inner = content.get("layers")
    if isinstance(inner, dict):
        content = inner
    if any(map(_HAWQ.fullmatch, content)):
        return None
    for name, entry in content.items():
        if isinstance(entry, dict):
            nested = _find_key(entry, "weights_n_bits")
            bits = next((entry[key] for key in _WEIGHTS if key in entry), nested)
            acts = next((entry[key] for key in _READS if key in entry), None)
            if bits is None:
                return None
            found.add(name, bits, acts)
        elif _looks_like_bits(entry):
            found.add(name, entry)
        else:
            return None
    return found


def _read_lines(found: LayerBits, text: str) -> LayerBits | None:
    """Read lines of layer and bits, and of what the layer reads where there is a third column."""
    rows = read_bit_table(text, found.source)
    for name, bits, acts in rows or []:
        found.add(name, bits, acts)
    return found if found.weights else None


def _looks_like_bits(entry: object) -> bool:
    """Tell whether a value is meant as a width, though text or a fraction is none."""
    if isinstance(entry, str):
        return is_whole_number(entry.strip())
    return isinstance(entry, int | float) and not isinstance(entry, bool)
