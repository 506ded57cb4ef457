"""Decoding with Pillow in worker processes, pixel for pixel what torchvision's transforms give."""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ompq.data.decoding import Decoded
from ompq.data.views import View, evaluation_view, random_view
from ompq.preprocess import Preprocess

_CHUNK = 16
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# What Pillow's decoders raise on files that are damaged, or not images at all.
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    SyntaxError,
    LookupError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def decode_with_pillow(
    paths: Sequence[Path], preprocess: Preprocess, seeds: Sequence[int] | None, workers: int
) -> Iterator[Decoded]:
    """See `ompq.data.decoding.decode`."""
    chunks = _Chunks(paths, preprocess, seeds)
    workers = workers if len(chunks) > 1 else 0
    options: dict[str, Any] = {"num_workers": min(workers, len(chunks))}
    if workers and threading.active_count() > 1:
        # Forking a process with threads may copy a lock that is held.
        options["multiprocessing_context"] = "forkserver"
    return iter(DataLoader(chunks, batch_size=None, collate_fn=_as_it_is, **options))


def read_image(file: str | Path | BinaryIO) -> Image.Image | None:
    """The image in RGB, None where the file cannot be decoded."""
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except UNREADABLE:
        return None


def cut(image: Image.Image, view: View, preprocess: Preprocess) -> Tensor:
    """The part of an RGB `image` that `view` names: 3 × S × S, uint8."""
    top, left, height, width = view.box
    if (height, width) != (image.height, image.width):
        image = image.crop((left, top, left + width, top + height))
    image = image.resize(view.resized[::-1], _FILTERS[preprocess.interpolation])
    top, left = view.corner
    size = preprocess.input_size
    pixels = np.asarray(image)[top : top + size, left : left + size]
    if view.mirrored:
        pixels = pixels[:, ::-1]
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def view_of(height: int, width: int, preprocess: Preprocess, seed: int | None) -> View:
    """The random view of `seed`, or the evaluation view for None."""
    if seed is None:
        return evaluation_view(height, width, preprocess)
    return random_view(height, width, preprocess, seed)


def stack(images: Sequence[Tensor], preprocess: Preprocess) -> Tensor:
    """`images` (3 × S × S each) in one tensor, also where there is none."""
    size = preprocess.input_size
    return torch.stack(list(images)) if images else torch.empty(0, 3, size, size, dtype=torch.uint8)


class _Chunks(Dataset[Decoded]):
    """Files in pieces: one tensor per piece passes between processes, not one per image."""

    def __init__(
        self, paths: Sequence[Path], preprocess: Preprocess, seeds: Sequence[int] | None
    ) -> None:
        self._paths = [str(path) for path in paths]
        self._preprocess = preprocess
        self._seeds = seeds

    def __len__(self) -> int:
        return -(-len(self._paths) // _CHUNK)

    def __getitem__(self, index: int) -> Decoded:
        if index >= len(self):
            raise IndexError(index)
        positions = range(index * _CHUNK, min((index + 1) * _CHUNK, len(self._paths)))
        images = {p: image for p in positions if (image := self._image(p)) is not None}
        unreadable = tuple(p for p in positions if p not in images)
        return Decoded(stack([*images.values()], self._preprocess), tuple(images), unreadable)

    def _image(self, position: int) -> Tensor | None:
        image = read_image(self._paths[position])
        if image is None:
            return None
        seed = None if self._seeds is None else self._seeds[position]
        view = view_of(image.height, image.width, self._preprocess, seed)
        return cut(image, view, self._preprocess)


def _as_it_is(item: Any) -> Any:
    return item
