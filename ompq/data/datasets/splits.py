"""What an opened data set is made of: tensors in memory, or image files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class TensorSplit:
    """Images in memory as they were stored, small enough to index whole batches at once.

    Attributes:
        images: Pixels, N × C × H × W, uint8; C is 1 or 3.
        labels: Class of each image, N, int64.
        num_classes: Number of classes.
        white: Value of a white pixel.
        border: Number of black pixels that are added on each side when batches are made.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    white: int = 255
    border: int = 0


@dataclass(frozen=True)
class FileSplit:
    """Image files with their labels.

    Attributes:
        paths: Paths of the N image files.
        labels: Class of each image, N, int64; −1 where there is none.
        num_classes: Number of classes; 0 where the images have no labels.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    num_classes: int


Split = TensorSplit | FileSplit
