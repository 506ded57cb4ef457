"""Decoding with NVIDIA DALI: on the GPU where there is one, else on the CPU.

Sizes, crops and flips are computed here and given to DALI, so that both decoders show the same
part of every image. On real photographs the CPU's pixels differ from Pillow's by 0.16 grey levels
in the mean (of 255, bilinear or bicubic, resize 256, DALI 2.4), through rounding in the resize; the
decoded JPEGs are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ompq.data.decoding import Decoded
from ompq.data.pillow import UNREADABLE, cut, read_image, stack, view_of
from ompq.data.views import View
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess

_BATCH = 32
_JPEG_END = b"\xff\xd9"
_TAIL = 64
_INPUTS = ("encoded", "start", "shape", "resized", "corner", "mirrored")


@dataclass(frozen=True)
class _Files:
    """Up to `_BATCH` files that look whole, and the positions of those between that do not."""

    contents: tuple[bytes, ...]
    views: tuple[View, ...]
    readable: tuple[int, ...]
    unreadable: tuple[int, ...]


def decode_with_dali(
    paths: Sequence[Path], preprocess: Preprocess, seeds: Sequence[int] | None, workers: int
) -> Iterator[Decoded]:
    """See `ompq.data.decoding.decode`.

    A DALI pipeline is broken for good by a file that it cannot decode. Files that are plainly
    damaged never reach it; where it breaks all the same, Pillow decodes that batch and a new
    pipeline goes on behind it.

    Raises:
        OmpqError: DALI does not run here.
    """
    pipeline = None
    for files in _files(paths, preprocess, seeds):
        if not files.contents:
            yield Decoded(stack([], preprocess), (), files.unreadable)
            continue
        pipeline = pipeline or _start(preprocess, workers)
        images = _run(pipeline, files)
        if images is None:
            pipeline = None
            yield _with_pillow(files, preprocess)
        else:
            yield Decoded(images, files.readable, files.unreadable)


def _run(pipeline: Any, files: _Files) -> Tensor | None:
    """The images of `files`, uint8; None where the pipeline broke on one of them."""
    views = files.views
    try:
        (output,) = pipeline.run(
            encoded=[np.frombuffer(content, np.uint8) for content in files.contents],
            start=[np.array(view.box[:2], np.int32) for view in views],
            shape=[np.array(view.box[2:], np.int32) for view in views],
            resized=[np.array(view.resized, np.float32) for view in views],
            corner=[np.array(view.corner, np.int32) for view in views],
            mirrored=[np.array(view.mirrored, np.int32) for view in views],
        )
    except RuntimeError as error:
        if "decoders.image" in str(error):
            return None
        raise _failure(error) from error
    on_cpu = output.as_cpu() if hasattr(output, "as_cpu") else output
    return torch.tensor(on_cpu.as_array())


def _failure(error: Exception) -> OmpqError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
    return OmpqError(f"DALI does not run here: {reason}; use --loader torchvision")


def _files(
    paths: Sequence[Path], preprocess: Preprocess, seeds: Sequence[int] | None
) -> Iterator[_Files]:
    """Read `paths` a batch at a time; only the last batch may hold no readable file."""
    found: list[tuple[bytes, View, int]] = []
    unreadable: list[int] = []
    for position, path in enumerate(paths):
        content, size = _read(path)
        if size is None:
            unreadable.append(position)
        else:
            view = view_of(*size, preprocess, None if seeds is None else seeds[position])
            found.append((content, view, position))
        if len(found) == _BATCH:
            yield _together(found, unreadable)
            found, unreadable = [], []
    if found or unreadable:
        yield _together(found, unreadable)


def _together(found: Sequence[tuple[bytes, View, int]], unreadable: Sequence[int]) -> _Files:
    contents, views, readable = zip(*found, strict=True) if found else ((), (), ())
    return _Files(contents, views, readable, tuple(unreadable))


def _read(path: Path) -> tuple[bytes, tuple[int, int] | None]:
    """A file's bytes, and height and width of its image: None where it cannot be decoded.

    A JPEG with a header and an end is taken to be whole; others are decoded to see.
    """
    try:
        content = path.read_bytes()
        with Image.open(BytesIO(content)) as image:
            size = image.height, image.width
            whole = image.format == "JPEG" and _JPEG_END in content[-_TAIL:]
    except UNREADABLE:
        return b"", None
    return content, size if whole or read_image(BytesIO(content)) else None


def _with_pillow(files: _Files, preprocess: Preprocess) -> Decoded:
    """Decode a batch without DALI; its files may turn out to be unreadable."""
    images: dict[int, Tensor] = {}
    for content, view, position in zip(files.contents, files.views, files.readable, strict=True):
        image = read_image(BytesIO(content))
        if image is not None:
            images[position] = cut(image, view, preprocess)
    damaged = [position for position in files.readable if position not in images]
    unreadable = tuple(sorted([*files.unreadable, *damaged]))
    return Decoded(stack([*images.values()], preprocess), tuple(images), unreadable)


def _start(preprocess: Preprocess, workers: int) -> Any:
    """A pipeline that takes the inputs of `_run` and gives uint8 images 3 × S × S.

    Raises:
        OmpqError: DALI is broken here, or cannot use the GPU.
    """
    try:
        dali, fn = import_module("nvidia.dali"), import_module("nvidia.dali.fn")
    except (ImportError, OSError) as error:
        raise _failure(error) from error
    gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
    filters = {"bilinear": dali.types.INTERP_LINEAR, "bicubic": dali.types.INTERP_CUBIC}
    square = (preprocess.input_size, preprocess.input_size)

    # One batch at a time: DALI 2.4 that works ahead crashes the process after a decoding error.
    @dali.pipeline_def(
        batch_size=_BATCH,
        num_threads=max(workers, 1),
        device_id=gpu,
        prefetch_queue_depth=1,
        exec_pipelined=False,
        exec_async=False,
    )
    def build() -> Any:
        given = {name: fn.external_source(name=name) for name in _INPUTS}
        # Pillow does not turn images by their EXIF orientation either.
        pixels = fn.decoders.image(
            given["encoded"],
            device="cpu" if gpu is None else "mixed",
            output_type=dali.types.RGB,
            adjust_orientation=False,
        )
        pixels = fn.slice(pixels, start=given["start"], shape=given["shape"], axis_names="HW")
        pixels = fn.resize(
            pixels,
            size=given["resized"],
            interp_type=filters[preprocess.interpolation],
            antialias=True,
            subpixel_scale=False,
        )
        pixels = fn.slice(pixels, start=given["corner"], shape=square, axis_names="HW")
        return fn.transpose(fn.flip(pixels, horizontal=given["mirrored"]), perm=(2, 0, 1))

    try:
        pipeline = build()
        pipeline.build()
    except RuntimeError as error:
        raise _failure(error) from error
    return pipeline
