"""What an opened data set is made of: tensors in memory, or image files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class TensorSplit:
    """Images in memory as they were stored, small enough to index whole batches at once.

    `images` is N × C × H × W, uint8, C being 1 or 3; `labels` is N, int64; `white` is the value of
    a white pixel; `border` is how many black pixels are added on each side of a batch.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    white: int = 255
    border: int = 0


@dataclass(frozen=True)
class FileSplit:
    """Image files; `labels` is N, int64, −1 where an image has none."""

    paths: tuple[Path, ...]
    labels: Tensor
    num_classes: int


Split = TensorSplit | FileSplit
