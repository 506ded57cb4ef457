"""A handful of images, chosen by seed, or exactly those of a file."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ompq.data.decoding import choose_backend, decode
from ompq.data.loader import normalise
from ompq.data.splits import FileSplit, dataset_info
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess


def calibration_batches(
    dataset: str,
    root: str | Path | None,
    preprocess: Preprocess,
    num_images: int,
    batch_size: int,
    *,
    seed: int = 0,
    workers: int = 0,
    backend: str = "auto",
    augment: bool = False,
    skipped: list[str] | None = None,
) -> Iterator[Tensor]:
    """Batches of `num_images` seeded training images, all ranks the same.

    Unreadable files are skipped, added to `skipped`, and replaced by further images while there
    are any. The images are split into batches of nearly equal size, none above `batch_size`.

    Raises:
        OmpqError: the data set cannot be opened.
    """
    opened = dataset_info(dataset).open(Path(root) if root is not None else None, "train")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(opened.labels), generator=generator).tolist()
    wanted = min(num_images, len(order))
    sizes = iter(batch_sizes(wanted, batch_size))
    if not isinstance(opened, FileSplit):
        for size in sizes:
            taken, order = order[:size], order[size:]
            yield normalise(opened.images[taken], preprocess)
        return
    paths = [opened.paths[index] for index in order]
    images: list[Tensor] = []
    size = next(sizes, 0)
    backend = choose_backend(backend)
    for position, image in _decode_as_needed(
        paths, wanted, preprocess, backend, workers, augment, seed
    ):
        if image is None:
            if skipped is not None:
                skipped.append(str(paths[position]))
            continue
        images.append(image)
        if len(images) == size:
            yield torch.stack(images)
            images, size = [], next(sizes, 0)
            if size == 0:
                return
    if images:
        yield torch.stack(images)


def _decode_as_needed(
    paths: list[Path],
    wanted: int,
    preprocess: Preprocess,
    backend: str,
    workers: int,
    augment: bool,
    seed: int,
) -> Iterator[tuple[int, Tensor | None]]:
    """Decode the first `wanted` paths, then as many more as were unreadable, and so on."""
    start, missing = 0, wanted
    while missing and start < len(paths):
        part = paths[start : start + missing]
        missing = 0
        for position, image in decode(
            part, preprocess, backend=backend, workers=workers, augment=augment, seed=seed
        ):
            missing += image is None
            yield start + position, image
        start += len(part)


def batch_sizes(total: int, largest: int) -> list[int]:
    """Split `total` into the fewest parts of nearly equal size, none above `largest`."""
    count = -(-total // largest)
    return [total // count + (index < total % count) for index in range(count)]


def load_calibration_file(path: str | Path) -> Tensor:
    """Images of a `.pt` or `.npy` file, already normalised.

    Returns:
        n × 3 × H × W, float32.

    Raises:
        OmpqError: missing, unreadable, another shape, empty, or not finite (names the image).
    """
    path = Path(path)
    if not path.is_file():
        raise OmpqError(f"--calibration_data {path}: there is no such file")
    try:
        images = _read_tensor(path)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise OmpqError(
            f"--calibration_data {path} cannot be read; save one tensor with torch.save (.pt) or "
            "one array with numpy.save (.npy)"
        ) from error
    if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[1] != 3:
        what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise OmpqError(f"--calibration_data {path} is {what}; expected images n×3×H×W")
    if images.shape[0] < 2:
        raise OmpqError(
            f"--calibration_data {path} holds {images.shape[0]} image(s); give two or more"
        )
    if not images.is_floating_point():
        raise OmpqError(f"--calibration_data {path} is {images.dtype}; normalise to floats first")
    finite = images.flatten(1).isfinite().all(dim=1)
    if not finite.all():
        bad = int(torch.nonzero(~finite)[0])
        raise OmpqError(f"--calibration_data {path}: image {bad} holds NaN or infinity")
    return images.float()


def _read_tensor(path: Path) -> Tensor:
    if path.suffix == ".npy":
        return torch.from_numpy(np.load(path, allow_pickle=False))
    loaded: Tensor = torch.load(path, map_location="cpu", weights_only=True)
    return loaded
