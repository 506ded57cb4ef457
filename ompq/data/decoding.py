"""Image files to tensors: torchvision in worker processes, or DALI."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as tv

from ompq.errors import OmpqError
from ompq.preprocess import Preprocess

BACKENDS = ("auto", "torchvision", "dali")
Decoded = tuple[int, Tensor | None]


def choose_backend(name: str) -> str:
    """`torchvision` or `dali`; `auto` takes DALI where it is installed and there is a GPU.

    Raises:
        OmpqError: DALI is asked for and not installed, or the name is unknown.
    """
    if name not in BACKENDS:
        raise OmpqError(f"--loader {name}: unknown; choose one of {', '.join(BACKENDS)}")
    installed = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
    if name == "dali" and not installed:
        raise OmpqError("--loader dali needs NVIDIA DALI: pip install nvidia-dali-cuda130")
    if name == "auto":
        return "dali" if installed and torch.cuda.is_available() else "torchvision"
    return name


def decode(
    paths: Sequence[Path],
    preprocess: Preprocess,
    *,
    backend: str,
    workers: int,
    augment: bool,
    seed: int,
) -> Iterator[Decoded]:
    """Yield (position, image 3 × H × W float32) in the order of `paths`, None where unreadable.

    With `augment` images are cropped at random, resized and flipped, else resized and cropped in
    the centre; both the same for the same seed and position, whatever the number of workers.
    """
    if backend == "dali":
        from ompq.data.dali import decode_with_dali

        return decode_with_dali(paths, preprocess, workers=workers, augment=augment, seed=seed)
    return _decode_with_torchvision(paths, preprocess, workers, augment, seed)


def transform(preprocess: Preprocess, augment: bool) -> tv.Compose:
    """The torchvision transform from a PIL image to a normalised tensor."""
    mode = tv.InterpolationMode(preprocess.interpolation)
    size = preprocess.input_size
    crop = (
        [tv.RandomResizedCrop(size, interpolation=mode), tv.RandomHorizontalFlip()]
        if augment
        else [tv.Resize(preprocess.resize, interpolation=mode), tv.CenterCrop(size)]
    )
    normalise = tv.Normalize(preprocess.mean, preprocess.std)
    return tv.Compose([*crop, tv.ToTensor(), normalise])


def read_image(path: Path) -> Image.Image | None:
    """The image in RGB, None where the file cannot be decoded."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


class _Files(Dataset[Decoded]):
    def __init__(self, paths: Sequence[Path], preprocess: Preprocess, augment: bool, seed: int):
        self._paths = [str(path) for path in paths]
        self._transform = transform(preprocess, augment)
        self._augment = augment
        self._seed = seed

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Decoded:
        image = read_image(Path(self._paths[index]))
        if image is None:
            return index, None
        if not self._augment:
            return index, self._transform(image)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed * 1_000_003 + index)
            return index, self._transform(image)


def _together(items: list[Decoded]) -> list[Decoded]:
    return items


def _decode_with_torchvision(
    paths: Sequence[Path], preprocess: Preprocess, workers: int, augment: bool, seed: int
) -> Iterator[Decoded]:
    files = _Files(paths, preprocess, augment, seed)
    workers = min(workers, len(files) // 16)
    options: dict[str, Any] = {"num_workers": workers, "collate_fn": _together}
    if workers and threading.active_count() > 1:
        # Forking a process with threads (of OpenMP, of CUDA) may copy a lock that is held.
        options["multiprocessing_context"] = "forkserver"
    for batch in DataLoader(files, batch_size=16, **options):
        yield from batch
