"""CIFAR-10, in the python version of its files or in the binary one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ompq.data.datasets.download import download, find_cache_folder
from ompq.data.datasets.splits import TensorSplit
from ompq.errors import OmpqError

CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
_PYTHON = "cifar-10-batches-py"
_BINARY = "cifar-10-batches-bin"
_FILES = {"train": [f"data_batch_{n}.bin" for n in range(1, 6)], "val": ["test_batch.bin"]}
_PIXELS = 3 * 32 * 32


def open_cifar10(root: Path | None, split: str) -> TensorSplit:
    """Open CIFAR-10: 32 × 32 pixels in colour, 50 000 for training, 10 000 for validation.

    Args:
        root: Folder that holds `cifar-10-batches-py` or `cifar-10-batches-bin` (the official
            versions), or that folder itself; None for this user's download.
        split: "train" or "val" (the test batch).

    Raises:
        OmpqError: The files are missing and cannot be downloaded, or are damaged.
    """
    where = root or find_cache_folder()
    if (where / _FILES["val"][0]).is_file():
        return _read_binary(where, split)
    where = where.parent if where.name in (_PYTHON, _BINARY) else where
    if (where / _BINARY).is_dir() and not (where / _PYTHON).is_dir():
        return _read_binary(where / _BINARY, split)
    return _read_python(where, split)


def _read_python(where: Path, split: str) -> TensorSplit:
    from torchvision.datasets import CIFAR10

    if not (where / _PYTHON).is_dir():
        advice = (
            f"CIFAR-10 is not in {where} and cannot be downloaded; give the folder that holds "
            f"{_PYTHON}/ or {_BINARY}/ as `root`"
        )
        download(CIFAR10, where, _PYTHON, advice)
    try:
        data = CIFAR10(str(where), train=split == "train")
    except (OSError, RuntimeError) as error:
        raise OmpqError(f"{where / _PYTHON} is incomplete or damaged; unpack it again") from error
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return TensorSplit(images, torch.tensor(data.targets), num_classes=10, class_names=CLASSES)


def _read_binary(folder: Path, split: str) -> TensorSplit:
    """Read the binary version: of each image one byte of label, then 3 × 32 × 32 of pixels."""
    rows = np.concatenate([_read_rows(folder / name) for name in _FILES[split]])
    images = torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32).copy())
    labels = torch.from_numpy(rows[:, 0].astype(np.int64))
    return TensorSplit(images, labels, num_classes=10, class_names=CLASSES)


def _read_rows(file: Path) -> np.ndarray:
    """Read the images of one file, n × 3073, uint8."""
    try:
        content = np.fromfile(file, np.uint8)
    except OSError as error:
        raise OmpqError(f"{file} is missing or cannot be read; unpack it again") from error
    if not len(content) or len(content) % (1 + _PIXELS):
        raise OmpqError(
            f"{file} is damaged: {len(content)} bytes are no whole number of images of "
            f"{1 + _PIXELS}; unpack it again"
        )
    rows = content.reshape(-1, 1 + _PIXELS)
    if rows[:, 0].max() >= len(CLASSES):
        raise OmpqError(
            f"{file} is damaged or not of CIFAR-10: it has the class {rows[:, 0].max()}, and there "
            f"are {len(CLASSES)}"
        )
    return rows
