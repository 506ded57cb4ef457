"""Names of layers that another tool wrote down, matched to a network's own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ompq.errors import OmpqError
from ompq.layer_patterns import find_closest, match_layers

_GLOB = re.compile(r"[*?\[]")
_SEPARATORS = "._/:"
# Names that a message tells of those that fit nothing.
_SHOWN = 5


@dataclass(frozen=True)
class _Affixes:
    """What stands around names there and not here, or here and not there.

    Attributes:
        before: What to take away in front of a name.
        behind: What to take away at its end.
        added: What to put in front.
    """

    before: str = ""
    behind: str = ""
    added: str = ""

    def apply(self, name: str) -> str:
        """Rename a layer; what is not there is not taken away."""
        name = name.removeprefix(self.before)
        name = name.removesuffix(self.behind) if self.behind else name
        return self.added + name


def match_names(given: Mapping[str, int], layers: Sequence[str], source: str) -> dict[str, int]:
    """Match names and globs to the layers of a network.

    What stands in front of all names, or behind them (`model.`, `.weight`), is taken away, and dots
    count as underscores where that alone tells names apart. Exact names go before globs.

    Args:
        given: Name, or glob → width.
        layers: Names of the network's layers.
        source: Name of the file, for messages.

    Raises:
        OmpqError: A name fits no layer, or two of different widths fit one.

    >>> match_names({"model.conv1.weight": 4, "model.fc.weight": 8}, ["conv1", "fc"], "a.csv")
    {'conv1': 4, 'fc': 8}
    """
    names = [name for name in given if not _GLOB.search(name) or name in layers]
    flat = len({_flatten(layer) for layer in layers}) == len(layers)
    keys = {_flatten(layer) if flat else layer: layer for layer in layers}
    key_of = {name: _flatten(name) if flat else name for name in names}
    affixes = _find_affixes(list(key_of.values()), keys)
    found: dict[str, int] = {}
    missing = []
    for name in names:
        key = key_of[name]
        layer = keys.get(key) or keys.get(affixes.apply(key))
        if layer is None:
            missing.append(name)
        elif found.setdefault(layer, given[name]) != given[name]:
            raise OmpqError(f"{source} gives {layer} several widths; leave one out")
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise OmpqError(
            f"{source}: {', '.join(missing[:_SHOWN])}{more} fit no layer of this network; the "
            f"closest names are {', '.join(find_closest(missing[0], layers))}"
        )
    globs = {name: bits for name, bits in given.items() if name not in names}
    matched = match_layers(globs, layers, source)
    return {layer: bits for layer, (_, bits) in matched.items()} | found


def match_quantizers(
    patterns: Mapping[str, int], layers: Sequence[str], kind: str
) -> dict[str, int]:
    """Give each layer what the last glob that fits its quantizer says; 0 bits are none.

    Args:
        patterns: Glob of quantizers → width.
        layers: Names of the network's layers.
        kind: Name of the quantizer that is asked for, of each layer.

    >>> match_quantizers({"*_quantizer": 4, "fc.*": 0}, ["conv1", "fc"], "weight_quantizer")
    {'conv1': 4}
    """
    found = {}
    for layer in layers:
        for pattern, bits in patterns.items():
            name = f"{layer}.{kind}"
            if fnmatchcase(name, pattern) or fnmatchcase(f"model.{name}", pattern):
                found[layer] = bits
    return {layer: bits for layer, bits in found.items() if bits}


def _flatten(name: str) -> str:
    return re.sub(r"[./:]", "_", name)


def _find_affixes(names: Sequence[str], keys: Mapping[str, str]) -> _Affixes:
    """Find what to take away of most names, or to put in front, so that they are layers."""
    votes: Counter[_Affixes] = Counter()
    for name in names:
        votes.update({affixes for key in keys for affixes in _compare(name, key)})
    if not votes:
        return _Affixes()
    most = max(votes.values())
    alike = [affixes for affixes, count in votes.items() if count == most]
    # The least change of those that serve as many names.
    return min(alike, key=lambda a: (len(a.before) + len(a.behind) + len(a.added), repr(a)))


def _compare(name: str, key: str) -> list[_Affixes]:
    """List the ways in which a name is a layer's: as it is, inside of it, or the end of it."""
    if name == key:
        return [_Affixes()]
    if key.endswith(name) and key[: -len(name)][-1:] in tuple(_SEPARATORS):
        return [_Affixes(added=key[: -len(name)])]
    ways = []
    for place in (found.start() for found in re.finditer(re.escape(key), name)):
        before, behind = name[:place], name[place + len(key) :]
        if before[-1:] in ("", *_SEPARATORS) and behind[:1] in ("", *_SEPARATORS):
            ways.append(_Affixes(before, behind))
    return ways
