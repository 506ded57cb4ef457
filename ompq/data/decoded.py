"""What every decoder gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Decoded:
    """Some files decoded.

    `images` is k × 3 × S × S, uint8; `readable` holds the k positions of its images in the list of
    files, ascending; `unreadable` the positions of files that cannot be decoded.
    """

    images: Tensor
    readable: tuple[int, ...]
    unreadable: tuple[int, ...]
