"""Patterns for the names of a network's layers: exact names, or globs such as `layer4.*`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from typing import TypeVar

from ompq.errors import OmpqError

Value = TypeVar("Value")
# Names that a message tells of those that a user may have meant.
_TOLD = 3


def match_layers(
    patterns: Mapping[str, Value], layers: Sequence[str], where: str
) -> dict[str, tuple[str, Value]]:
    """Find for each layer the pattern that decides about it, and what that gives it.

    Exact names go before globs, later globs before earlier ones. In a glob `*` stands for any
    characters, dots too, `?` for one and `[…]` for one of several.

    Args:
        patterns: Pattern → what it gives the layers that it matches.
        layers: Names of the network's layers.
        where: Name of what holds the patterns, for the message.

    Returns:
        Layer → the pattern and what it gives; layers that no pattern matches are left out.

    Raises:
        OmpqError: A pattern matches no layer; the closest names are told.

    >>> match_layers({"conv1": 8, "conv*": 4, "*2": 2}, ["conv1", "conv2", "conv3"], "`pins`")
    {'conv3': ('conv*', 4), 'conv2': ('*2', 2), 'conv1': ('conv1', 8)}
    """
    known = set(layers)
    found: dict[str, tuple[str, Value]] = {}
    globs = [pattern for pattern in patterns if pattern not in known]
    for pattern in globs:
        matched = [layer for layer in layers if fnmatchcase(layer, pattern)]
        if not matched:
            raise OmpqError(
                f"{where} {pattern}: the network has no such layer; the closest names are "
                f"{', '.join(find_closest(pattern, layers))}"
            )
        for layer in matched:
            found.pop(layer, None)
            found[layer] = (pattern, patterns[pattern])
    exact = [pattern for pattern in patterns if pattern in known]
    return {
        **{layer: held for layer, held in found.items() if layer not in exact},
        **{layer: (layer, patterns[layer]) for layer in exact},
    }


def find_closest(pattern: str, names: Iterable[str], count: int = _TOLD) -> list[str]:
    """Find the names that a pattern without a match may have meant, the closest first.

    >>> find_closest("layer9.*", ["conv1", "layer1.0", "layer2.0"], count=2)
    ['layer1.0', 'layer2.0']
    """
    plain = re.sub(r"[*?\[\]]", "", pattern).lower()
    # Names are compared in both directions: the matcher's answer depends on who comes first.
    likeness = {
        name: max(
            SequenceMatcher(None, plain, name.lower()).ratio(),
            SequenceMatcher(None, name.lower(), plain).ratio(),
        )
        for name in names
    }
    return sorted(likeness, key=lambda name: -likeness[name])[:count]
