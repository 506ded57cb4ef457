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
        class_names: Names of the classes, in the order of their numbers.
        notes: What a user should know of it, one line each.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    white: int = 255
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileSplit:
    """Image files with their labels.

    Attributes:
        paths: Paths of the N image files.
        labels: Class of each image, N, int64; −1 where there is none.
        num_classes: Number of classes; 0 where the images have no labels.
        class_names: Names of the classes, in the order of their numbers.
        other_names: The names with empty folders where `class_names` is without them, or without
            where it is with them: which are the classes may be seen from their number. Empty where
            there is no question.
        notes: What a user should know of it, one line each.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    num_classes: int
    class_names: tuple[str, ...] = ()
    other_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


Split = TensorSplit | FileSplit
