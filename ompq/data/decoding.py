"""Image files to pixels, by torchvision's means or by DALI, in the order of the files."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from ompq.data.decoded import Decoded
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess

Decoder = Callable[[Sequence[Path], Preprocess, Sequence[int] | None, int], Iterator[Decoded]]


def _torchvision(
    paths: Sequence[Path], preprocess: Preprocess, seeds: Sequence[int] | None, workers: int
) -> Iterator[Decoded]:
    from ompq.data.pillow import decode_with_pillow

    return decode_with_pillow(paths, preprocess, seeds, workers)


def _dali(
    paths: Sequence[Path], preprocess: Preprocess, seeds: Sequence[int] | None, workers: int
) -> Iterator[Decoded]:
    from ompq.data.dali import decode_with_dali

    return decode_with_dali(paths, preprocess, seeds, workers)


DECODERS: dict[str, Decoder] = {"torchvision": _torchvision, "dali": _dali}
BACKENDS = ("auto", *DECODERS)


def choose_backend(name: str) -> str:
    """`torchvision` or `dali`; `auto` takes DALI where it is installed and there is a GPU.

    Raises:
        OmpqError: DALI is asked for and not installed, or the name is unknown.
    """
    if name not in BACKENDS:
        raise OmpqError(f"--loader {name}: unknown; choose one of {', '.join(BACKENDS)}")
    if name == "auto":
        return "dali" if torch.cuda.is_available() and _has_dali() else "torchvision"
    if name == "dali" and not _has_dali():
        raise OmpqError(
            "--loader dali needs NVIDIA DALI: pip install nvidia-dali-cuda130, "
            "or use --loader torchvision"
        )
    return name


def _has_dali() -> bool:
    """Whether DALI is installed, without importing it."""
    return bool(importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"))


def decode(
    paths: Sequence[Path],
    preprocess: Preprocess,
    *,
    backend: str,
    workers: int,
    seeds: Sequence[int] | None = None,
) -> Iterator[Decoded]:
    """Decode, resize and crop `paths` in their order; every position comes back exactly once.

    Args:
        backend: of `choose_backend`.
        workers: threads; the result does not depend on their number.
        seeds: one per file for random crops and flips, as in training; None for evaluation.
    """
    return DECODERS[backend](paths, preprocess, seeds, workers)
