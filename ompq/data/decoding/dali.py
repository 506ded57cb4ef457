"""Decoding with NVIDIA DALI: on the GPU where there is one, else on the CPU.

Sizes, crops and flips are computed here and given to DALI, so that both decoders show the same
part of every image. On real photographs the CPU's pixels differ from Pillow's by 0.16 grey levels
in the mean (of 255, bilinear or bicubic, resize 256, DALI 2.4), through rounding in the resize; the
decoded JPEGs are the same.

DALI takes no damaged file: it raises, and with several of them it may end the process by a
segmentation fault (seen with 2.4). So it is given JPEGs only that Pillow has gone through before,
at an eighth of the scale, without colours; for a photograph of 512 × 512 that takes 2.3 ms of a
core, where Pillow does the whole work in 5. All other formats Pillow decodes.
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

from ompq.data.decoding.decoded import Decoded
from ompq.data.decoding.pillow import UNREADABLE, cut, map_in_threads, read_image, stack
from ompq.data.decoding.views import View, choose_view
from ompq.data.pixels import convert_channels
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess

_BATCH = 32
_INPUTS = ("encoded", "start", "shape", "resized", "corner", "mirrored")


@dataclass(frozen=True)
class _Jpeg:
    """A file for DALI: its bytes, its view, and its position in the list of files."""

    content: bytes
    view: View
    position: int


@dataclass(frozen=True)
class _Files:
    """Up to `_BATCH` files by position: those for DALI, decoded images, and the unreadable."""

    jpegs: list[_Jpeg]
    decoded: dict[int, Tensor]
    unreadable: list[int]


def decode_with_dali(
    paths: Sequence[Path], preprocess: Preprocess, seeds: Sequence[int] | None, workers: int
) -> Iterator[Decoded]:
    """Decode image files, JPEGs with DALI and others with Pillow, in pieces of `_BATCH`.

    Args:
        paths: Paths of the image files.
        preprocess: Preprocessing whose sizes and interpolation are used.
        seeds: One seed for each file's random view; None for evaluation views.
        workers: Number of threads; 0 for none beside this one.

    Raises:
        OmpqError: DALI does not run here.
    """

    def read(start: int) -> _Files:
        files = _Files([], {}, [])
        for position in range(start, min(start + _BATCH, len(paths))):
            seed = None if seeds is None else seeds[position]
            _sort_in(files, paths[position], position, preprocess, seed)
        return files

    pipeline = None
    for files in map_in_threads(read, range(0, len(paths), _BATCH), workers):
        if files.jpegs:
            pipeline = pipeline or _start_pipeline(preprocess, workers)
            images = _run_pipeline(pipeline, files.jpegs)
            if images is None:  # a pipeline that has failed is of no more use
                pipeline = None
                _decode_with_pillow(files, preprocess)
            else:
                names = (jpeg.position for jpeg in files.jpegs)
                images = convert_channels(images, preprocess.channels)
                files.decoded.update(zip(names, images, strict=True))
        readable = sorted(files.decoded)
        images = stack([files.decoded[position] for position in readable], preprocess)
        yield Decoded(images, tuple(readable), tuple(sorted(files.unreadable)))


def _sort_in(
    files: _Files, path: Path, position: int, preprocess: Preprocess, seed: int | None
) -> None:
    """Put one file where it belongs in `files`."""
    try:
        content = path.read_bytes() if path.is_file() else b""
    except OSError:
        content = b""
    size = _read_jpeg_size(content)
    if size is not None:
        view = choose_view(*size, preprocess, seed)
        files.jpegs.append(_Jpeg(content, view, position))
        return
    image = read_image(BytesIO(content), preprocess.channels)
    if image is None:
        files.unreadable.append(position)
    else:
        view = choose_view(image.height, image.width, preprocess, seed)
        files.decoded[position] = cut(image, view, preprocess)


def _read_jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Read height and width of a grey or RGB JPEG that can be decoded; None for all else."""
    try:
        with Image.open(BytesIO(content)) as image:
            size = image.height, image.width
            if image.format != "JPEG" or image.mode not in ("L", "RGB"):
                return None
            # The cheapest way through the whole file: an eighth of the scale, brightness only.
            image.draft("L", (1, 1))
            image.load()
    except UNREADABLE:
        return None
    return size


def _decode_with_pillow(files: _Files, preprocess: Preprocess) -> None:
    for jpeg in files.jpegs:
        image = read_image(BytesIO(jpeg.content), preprocess.channels)
        if image is None:
            files.unreadable.append(jpeg.position)
        else:
            files.decoded[jpeg.position] = cut(image, jpeg.view, preprocess)


def _run_pipeline(pipeline: Any, jpegs: Sequence[_Jpeg]) -> Tensor | None:
    """Decode JPEGs to n × C × S × S, uint8, C being 1 or 3; None where DALI cannot do one."""
    views = [jpeg.view for jpeg in jpegs]
    try:
        (output,) = pipeline.run(
            encoded=[np.frombuffer(jpeg.content, np.uint8) for jpeg in jpegs],
            start=[np.array(view.box[:2], np.int32) for view in views],
            shape=[np.array(view.box[2:], np.int32) for view in views],
            resized=[np.array(view.resized, np.float32) for view in views],
            corner=[np.array(view.corner, np.int32) for view in views],
            mirrored=[np.array(view.mirrored, np.int32) for view in views],
        )
    except RuntimeError as error:
        if "decoders.image" in str(error):
            return None
        raise _describe_failure(error) from error
    on_cpu = output.as_cpu() if hasattr(output, "as_cpu") else output
    return torch.tensor(on_cpu.as_array())


def _describe_failure(error: Exception) -> OmpqError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
    return OmpqError(f"DALI does not run here: {reason}; use `backend` torchvision")


def _start_pipeline(preprocess: Preprocess, workers: int) -> Any:
    """Start a pipeline that takes `_INPUTS` and gives images, C × S × S, uint8.

    C is 1 for grey images; for RGBA it is 3, since no JPEG has more.

    Raises:
        OmpqError: DALI is broken here, or cannot use the GPU.
    """
    try:
        dali, fn = import_module("nvidia.dali"), import_module("nvidia.dali.fn")
    except (ImportError, OSError) as error:
        raise _describe_failure(error) from error
    gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
    filters = {"bilinear": dali.types.INTERP_LINEAR, "bicubic": dali.types.INTERP_CUBIC}
    square = (preprocess.input_size, preprocess.input_size)

    # One batch at a time: of a failure it is then known which files it concerns, and DALI 2.4
    # that works ahead ends the process by a segmentation fault.
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
        if preprocess.channels == 1:
            pixels = fn.color_space_conversion(
                pixels, image_type=dali.types.RGB, output_type=dali.types.GRAY
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
        raise _describe_failure(error) from error
    return pipeline
