"""Decoding with Pillow, pixel for pixel what torchvision's transforms give.

In threads, since Pillow decodes and resizes without holding the interpreter: nothing is forked or
copied between processes, and the pixels do not depend on their number.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ompq.data.decoding.decoded import Decoded
from ompq.data.decoding.depths import convert_image
from ompq.data.decoding.views import View, choose_view
from ompq.preprocess import Preprocess

T = TypeVar("T")

_PIECE = 8
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
    """Decode image files with Pillow, in pieces of `_PIECE`.

    Args:
        paths: Paths of the image files.
        preprocess: Preprocessing whose sizes and interpolation are used.
        seeds: One seed for each file's random view; None for evaluation views.
        workers: Number of threads; 0 for none beside this one.
    """

    def decode_piece(start: int) -> Decoded:
        positions = range(start, min(start + _PIECE, len(paths)))
        found = {}
        for position in positions:
            seed = None if seeds is None else seeds[position]
            image = _decode_one(paths[position], preprocess, seed)
            if image is not None:
                found[position] = image
        unreadable = tuple(position for position in positions if position not in found)
        return Decoded(stack([*found.values()], preprocess), tuple(found), unreadable)

    return map_in_threads(decode_piece, range(0, len(paths), _PIECE), workers)


def map_in_threads(function: Callable[[int], T], items: Iterable[int], workers: int) -> Iterator[T]:
    """Map `function` over `items` in threads, in order, at most a few items ahead.

    Calls that have not begun when the iterator is left are dropped.

    Args:
        function: Function to call; it must be safe to call from several threads at once.
        items: Arguments, one for each call.
        workers: Number of threads; 0 for none beside this one.
    """
    if workers == 0:
        yield from map(function, items)
        return
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            # Two calls a thread: enough to keep all busy, few enough to bound the memory.
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _decode_one(path: Path, preprocess: Preprocess, seed: int | None) -> Tensor | None:
    image = read_image(path, preprocess.channels)
    if image is None:
        return None
    return cut(image, choose_view(image.height, image.width, preprocess, seed), preprocess)


def read_image(file: str | Path | BinaryIO, channels: int) -> Image.Image | None:
    """Read an image; None where the file cannot be decoded.

    Args:
        file: Path of the file, or the opened file.
        channels: 1 for grey, 3 for RGB, 4 for RGBA.
    """
    if isinstance(file, str | Path) and not Path(file).is_file():
        return None  # a pipe would be waited for
    try:
        with Image.open(file) as image:
            return convert_image(image, channels)
    except UNREADABLE:
        return None


def cut(image: Image.Image, view: View, preprocess: Preprocess) -> Tensor:
    """Cut the part that a view names out of an image.

    Args:
        image: Image in grey, RGB or RGBA.
        view: View of an image of that size.
        preprocess: Preprocessing whose `input_size` (S) and interpolation are used.

    Returns:
        The pixels, C × S × S, uint8.
    """
    top, left, height, width = view.box
    if (height, width) != (image.height, image.width):
        image = image.crop((left, top, left + width, top + height))
    image = image.resize(view.resized[::-1], _FILTERS[preprocess.interpolation])
    top, left = view.corner
    size = preprocess.input_size
    pixels = np.atleast_3d(np.asarray(image))[top : top + size, left : left + size]
    if view.mirrored:
        pixels = pixels[:, ::-1]
    # PyTorch takes no array with negative strides.
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def stack(images: Sequence[Tensor], preprocess: Preprocess) -> Tensor:
    """Stack images (C × S × S each) into k × C × S × S, uint8; k may be 0.

    Args:
        images: The k images.
        preprocess: Preprocessing that tells C and S, which no image may be there to tell.
    """
    if images:
        return torch.stack(list(images))
    size = preprocess.input_size
    return torch.empty(0, preprocess.channels, size, size, dtype=torch.uint8)
