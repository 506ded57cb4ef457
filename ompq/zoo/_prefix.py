"""Finding a network's own names behind what wrappers put before them.

Parallel training, averages of the weights, training frameworks and torch.compile keep a network as
an attribute of theirs (`module.`, `model.`, `ema_model.`, `_orig_mod.`, or any other name, nested
at will), sometimes with tensors of their own beside it. No wrapper is known by name: each prefix in
the file is a candidate, and the network's own names decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import takewhile

from torch import Tensor

from ompq.zoo._checkpoint import SECOND_CHOICE

# Parts of a name that wrappers of single layers put in its middle, where the network has no such.
_INSERTED = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_SHOWN = 4
_NAMED_OF_A_GROUP = 2


def list_prefixes(names: Collection[str], least: float) -> list[str]:
    """List the prefixes under which a network may lie, the most likely ones first.

    Args:
        names: Names in the file.
        least: Number of names that must lie under a prefix, unless it is common to all.

    >>> list_prefixes(["n_averaged", "module.fc.weight", "module.fc.bias"], 2)
    ['', 'module.', 'module.fc.']
    """
    counts = Counter(
        name[: end + 1] for name in names for end, letter in enumerate(name) if letter == "."
    )
    found = [p for p, count in counts.items() if count >= least or count == len(names)]
    # Averages of the weights, and teachers, come after what may be the weights themselves.
    return ["", *sorted(found, key=lambda prefix: bool(SECOND_CHOICE.search(prefix)))]


def strip_prefix(
    tensors: Mapping[str, Tensor], prefix: str, own: Iterable[str]
) -> dict[str, Tensor]:
    """Return what lies under a prefix, without it and without what wrappers put into names.

    Args:
        tensors: Tensors by name.
        prefix: Prefix to remove; what does not begin with it is left out.
        own: Names in the network, whose parts no wrapper inserted.
    """
    inserted = _INSERTED - {part for name in own for part in name.split(".")}
    stripped: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            short = ".".join(part for part in rest.split(".") if part not in inserted)
            stripped[rest if short in stripped or not short else short] = tensor
    return stripped


def name_leftovers(names: Iterable[str], prefix: str, rivals: Collection[str] = ()) -> list[str]:
    """Name what lies beside a prefix: single names, or `HEAD.* (N entries)` for many.

    Args:
        names: Names in the file.
        prefix: Prefix of what was taken.
        rivals: Other prefixes under which the network lies as well.

    >>> name_leftovers(["n_averaged", "ema.a", "ema.b", "ema.c", "model.a"], "model.")
    ['n_averaged', 'ema.* (3 entries)']
    >>> name_leftovers(["net.q.a", "net.k.a", "net.k.b", "net.k.c"], "net.q.", ["net.k."])
    ['net.k.* (3 entries, which fit as well)']
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        if not name.startswith(prefix):
            groups.setdefault(_find_head(name, prefix), []).append(name)
    told: list[str] = []
    for head, members in groups.items():
        few = len(members) <= _NAMED_OF_A_GROUP
        fits_too = any(rival.startswith(f"{head}.") for rival in rivals)
        fits = ", which fit as well" if fits_too else ""
        told += members if few else [f"{head}.* ({len(members)} entries{fits})"]
    return told if len(told) <= _SHOWN else [*told[:_SHOWN], f"{len(told) - _SHOWN} more"]


def _find_head(name: str, prefix: str) -> str:
    """Return the parts of a name that it has in common with a prefix, and one more."""
    parts = name.split(".")
    pairs = zip(parts, prefix.split("."), strict=False)
    common = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return ".".join(parts[: common + 1])
