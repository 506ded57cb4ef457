"""scikit-learn's 1797 handwritten digits, the embedded default: no file, no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ompq.data.splits import TensorSplit


def open_digits(root: Path | None, split: str) -> TensorSplit:
    """8 × 8 pixels in 0..16; a fixed fifth of every class (359 images) is for validation.

    `root` is not looked at.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    in_val = _validation_part(bunch.target)
    chosen = torch.from_numpy(in_val if split == "val" else ~in_val)
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    return TensorSplit(images[chosen], labels[chosen], num_classes=10, white=16)


def _validation_part(target: np.ndarray) -> np.ndarray:
    """Which images are for validation: bool, one per label of `target`."""
    # RandomState's stream is frozen for good, so the split never moves.
    order = np.random.RandomState(0).permutation(len(target))
    in_val = np.zeros(len(target), dtype=bool)
    for label in np.unique(target):
        members = order[target[order] == label]
        in_val[members[: round(len(members) / 5)]] = True
    return in_val
