"""What every decoder gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Decoded:
    """Some of the files that a decoder was given, decoded.

    Attributes:
        images: Pixels of the k readable files, k × C × S × S, uint8.
        readable: Positions of these files in the list of all files, ascending.
        unreadable: Positions of the files that cannot be decoded, ascending.
    """

    images: Tensor
    readable: tuple[int, ...]
    unreadable: tuple[int, ...]
