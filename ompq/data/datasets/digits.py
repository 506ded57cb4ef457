"""scikit-learn's 1797 handwritten digits, the embedded default: no file, no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ompq.data.datasets.splits import TensorSplit


def open_digits(root: Path | None, split: str) -> TensorSplit:
    """Open the digits: 8 × 8 pixels in 0 … 16.

    A fixed fifth of every class is for validation, 359 images together.

    Args:
        root: Not used; the images come with scikit-learn.
        split: "train" or "val".
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    in_val = _mark_validation(bunch.target)
    chosen = torch.from_numpy(in_val if split == "val" else ~in_val)
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    names = tuple(str(digit) for digit in range(10))
    return TensorSplit(images[chosen], labels[chosen], 10, white=16, class_names=names)


def _mark_validation(target: np.ndarray) -> np.ndarray:
    """Tell for each label of `target` whether its image is for validation: bool, n."""
    # RandomState's stream is frozen for good, so the split never moves.
    order = np.random.RandomState(0).permutation(len(target))
    in_val = np.zeros(len(target), dtype=bool)
    for label in np.unique(target):
        members = order[target[order] == label]
        in_val[members[: round(len(members) / 5)]] = True
    return in_val
