"""Which networks of torchvision and timm the zoo examines: all of the one, one of each family."""

from __future__ import annotations

import re

import timm
from torchvision import models

# Words of a network's name that tell its size, from the smallest to the largest.
SIZES = (
    "zepto atto femto pico nano xxtiny xtiny xxs xs xx x ti t tiny mini s small e m medium b base "
    "l light lite large xl xlarge xxlarge xxl h huge g giant"
).split()
# Further words that do not make a family.
VARIANTS = frozenset("patch a c d f ma sa fl rw tf w so j r o v".split())


def choose_networks() -> list[tuple[str, str]]:
    """Choose library and name of every network to examine."""
    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(find_family(name), []).append(name)
    smallest = [min(names, key=rank_size) for names in families.values()]
    return [
        *(("torchvision", name) for name in models.list_models(module=models)),
        *(("timm", name) for name in sorted(smallest)),
    ]


def find_family(name: str) -> str:
    """Find the family of a network: its name up to the first number, without words of size.

    >>> find_family("convnext_tiny_hnf"), find_family("vit_base_patch16_224")
    ('convnext_hnf', 'vit')
    """
    words = re.split(r"\d", name)[0].strip("_").split("_")
    return "_".join(w for w in words if w and w not in SIZES and w not in VARIANTS) or name


def rank_size(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Rank a network within its family by what its name says of its size."""
    ranks = [SIZES.index(word) for word in re.split(r"[_\d]+", name) if word in SIZES]
    parts = [(int(p), "") if p.isdigit() else (0, p) for p in re.split(r"(\d+)", name)]
    return min(ranks, default=SIZES.index("s")), parts
