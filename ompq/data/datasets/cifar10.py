"""CIFAR-10, in torchvision's python version of the files."""

from __future__ import annotations

from pathlib import Path

import torch

from ompq.data.datasets.download import download, find_cache_folder
from ompq.data.datasets.splits import TensorSplit
from ompq.errors import OmpqError

_FOLDER = "cifar-10-batches-py"


def open_cifar10(root: Path | None, split: str) -> TensorSplit:
    """Open CIFAR-10: 32 × 32 pixels in colour, 50 000 for training, 10 000 for validation.

    Args:
        root: Folder that holds `cifar-10-batches-py`, or that folder itself; None for this user's
            download.
        split: "train" or "val" (the test batch).

    Raises:
        OmpqError: The files are missing and cannot be downloaded, or are damaged.
    """
    from torchvision.datasets import CIFAR10

    where = root or find_cache_folder()
    where = where.parent if where.name == _FOLDER else where
    if not (where / _FOLDER).is_dir():
        advice = (
            f"CIFAR-10 is not in {where} and cannot be downloaded; give the folder that holds "
            f"{_FOLDER}/ as `root`"
        )
        download(CIFAR10, where, _FOLDER, advice)
    try:
        data = CIFAR10(str(where), train=split == "train")
    except (OSError, RuntimeError) as error:
        raise OmpqError(f"{where / _FOLDER} is incomplete or damaged; unpack it again") from error
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return TensorSplit(images, torch.tensor(data.targets), num_classes=10)
