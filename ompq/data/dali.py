"""Decoding with NVIDIA DALI: on the GPU where there is one, else on the CPU."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ompq.data.decoding import Decoded, read_image
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess

_BATCH = 32


def decode_with_dali(
    paths: Sequence[Path], preprocess: Preprocess, *, workers: int, augment: bool, seed: int
) -> Iterator[Decoded]:
    """As `ompq.data.decoding.decode`; the mean difference to torchvision is about a grey level.

    DALI stops at the first unreadable file, so files are looked through beforehand.
    """
    readable = [index for index, path in enumerate(paths) if read_image(path) is not None]
    images = _run(_pipeline([paths[i] for i in readable], preprocess, workers, augment, seed))
    known = set(readable)
    for index in range(len(paths)):
        yield index, next(images) if index in known else None


def _pipeline(
    paths: Sequence[Path], preprocess: Preprocess, workers: int, augment: bool, seed: int
) -> tuple[Any, int]:
    fn: Any = importlib.import_module("nvidia.dali.fn")
    types: Any = importlib.import_module("nvidia.dali.types")
    pipeline_def: Any = importlib.import_module("nvidia.dali").pipeline_def

    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    place = "cpu" if device is None else "gpu"
    kinds = {"bilinear": types.INTERP_TRIANGULAR, "bicubic": types.INTERP_CUBIC}
    size = preprocess.input_size

    @pipeline_def(
        batch_size=_BATCH,
        num_threads=max(workers, 1),
        device_id=device,
        seed=seed,
        prefetch_queue_depth=2,
    )
    def build() -> Any:
        encoded, _ = fn.readers.file(files=[str(p) for p in paths], pad_last_batch=True)
        pixels = fn.decoders.image(
            encoded, device="cpu" if device is None else "mixed", output_type=types.RGB
        )
        options = {"interp_type": kinds[preprocess.interpolation], "device": place}
        if augment:
            pixels = fn.random_resized_crop(pixels, size=size, **options)
        else:
            pixels = fn.resize(pixels, resize_shorter=preprocess.resize, **options)
        return fn.crop_mirror_normalize(
            pixels,
            device=place,
            crop=(size, size),
            mirror=fn.random.coin_flip() if augment else 0,
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=[255 * value for value in preprocess.mean],
            std=[255 * value for value in preprocess.std],
        )

    pipeline = build()
    try:
        pipeline.build()
    except RuntimeError as error:
        reason = str(error).split("\n")[0][:160]
        raise OmpqError(f"DALI cannot start: {reason}; use --loader torchvision") from error
    return pipeline, len(paths)


def _run(started: tuple[Any, int]) -> Iterator[Tensor]:
    pipeline, count = started
    for start in range(0, count, _BATCH):
        (output,) = pipeline.run()
        batch = output.as_cpu() if hasattr(output, "as_cpu") else output
        for position in range(min(_BATCH, count - start)):
            yield torch.from_numpy(batch.as_array()[position].copy())
