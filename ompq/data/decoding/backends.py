"""Image files to pixels, by torchvision's means or by DALI, in the order of the files."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from ompq.data.decoding.decoded import Decoded
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess

Decoder = Callable[[Sequence[Path], Preprocess, Sequence[int] | None, int], Iterator[Decoded]]


# Decoders are imported where they are used: importing `ompq.data` loads neither of them.
def _use_torchvision(
    paths: Sequence[Path], preprocess: Preprocess, seeds: Sequence[int] | None, workers: int
) -> Iterator[Decoded]:
    from ompq.data.decoding.pillow import decode_with_pillow

    return decode_with_pillow(paths, preprocess, seeds, workers)


def _use_dali(
    paths: Sequence[Path], preprocess: Preprocess, seeds: Sequence[int] | None, workers: int
) -> Iterator[Decoded]:
    from ompq.data.decoding.dali import decode_with_dali

    return decode_with_dali(paths, preprocess, seeds, workers)


DECODERS: dict[str, Decoder] = {"torchvision": _use_torchvision, "dali": _use_dali}
BACKENDS = ("auto", *DECODERS)


def choose_backend(name: str) -> str:
    """Choose the decoder of image files.

    Args:
        name: "torchvision", "dali", or "auto" for DALI where it is installed and there is a GPU,
            and torchvision elsewhere.

    Returns:
        "torchvision" or "dali".

    Raises:
        OmpqError: DALI is asked for and not installed, or the name is unknown.
    """
    if name not in BACKENDS:
        raise OmpqError(f"`backend` {name}: unknown; choose one of {', '.join(BACKENDS)}")
    if name == "auto":
        return "dali" if torch.cuda.is_available() and _has_dali() else "torchvision"
    if name == "dali" and not _has_dali():
        raise OmpqError(
            "`backend` dali needs NVIDIA DALI: pip install nvidia-dali-cuda130, "
            "or use `backend` torchvision"
        )
    return name


def _has_dali() -> bool:
    """Tell whether DALI is installed, without importing it."""
    return bool(importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"))


def decode(
    paths: Sequence[Path],
    preprocess: Preprocess,
    *,
    backend: str,
    workers: int,
    seeds: Sequence[int] | None = None,
) -> Iterator[Decoded]:
    """Decode, resize and crop image files in their order; every position comes back exactly once.

    Args:
        paths: Paths of the image files.
        preprocess: Preprocessing whose sizes and interpolation are used; pixels stay uint8.
        backend: "torchvision" or "dali", as `choose_backend` returned it.
        workers: Number of threads; the pixels do not depend on it.
        seeds: One seed for each file, to crop, resize and flip it at random as in training; None
            for evaluation.

    Returns:
        Pieces of a few files each.
    """
    return DECODERS[backend](paths, preprocess, seeds, workers)
