"""Calibration images that a user saved, for exact repeats."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ompq.errors import OmpqError

_UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    pickle.UnpicklingError,
)


def load_calibration_file(path: str | Path, channels: int = 3) -> Tensor:
    """Load normalised calibration images from a `.pt` or `.npy` file.

    Nothing in the file is executed: `.pt` is read with `weights_only`, `.npy` without pickles.

    Args:
        path: Path of a file that holds one tensor (`torch.save`) or one array (`numpy.save`).
        channels: Number of channels of the network's images.

    Returns:
        The images, n × channels × H × W, float32; n is at least 2.

    Raises:
        OmpqError: The file is missing or unreadable, or holds no floats, another shape, fewer than
            two images, or NaN or infinity (the first such image is named).
    """
    path = Path(path)
    where = f"`calibration_data` {path}"
    if not path.is_file():
        raise OmpqError(f"{where}: there is no such file")
    images = _read(path, where)
    shape = "×".join(str(side) for side in images.shape) or "a single number"
    if images.dim() != 4 or images.shape[1] != channels or 0 in images.shape[2:]:
        raise OmpqError(f"{where} is {shape}; expected images n×{channels}×H×W")
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise OmpqError(f"{where} is {kind}; expected normalised images in floating point")
    if len(images) < 2:
        count = "a single image" if len(images) else "no image"
        raise OmpqError(f"{where} holds {count}; give two or more")
    images = images.float()
    finite = images.flatten(1).isfinite().all(dim=1)
    if not finite.all():
        bad = int(torch.nonzero(~finite)[0])
        raise OmpqError(f"{where}: image {bad} holds NaN or infinity; save the images again")
    return images


def _read(path: Path, where: str) -> Tensor:
    advice = "save one tensor with torch.save (.pt) or one array with numpy.save (.npy)"
    try:
        loaded = _load(path)
    except _UNREADABLE as error:
        raise OmpqError(f"{where} cannot be read; {advice}") from error
    if not isinstance(loaded, Tensor):
        raise OmpqError(f"{where} holds a {type(loaded).__name__}; {advice}")
    return loaded.detach()


def _load(path: Path) -> Any:
    if path.suffix == ".npy":
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("several arrays")
        # PyTorch takes arrays in the byte order of this machine only.
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(native)
    return torch.load(path, map_location="cpu", weights_only=True)
