"""A handful of training images, chosen by seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ompq.data.batching import Batch, batch_sizes, rebatch
from ompq.data.decoding import choose_backend, decode
from ompq.data.loader import check_positive, from_memory
from ompq.data.pixels import normalise
from ompq.data.registry import DatasetInfo, dataset_info
from ompq.data.sampling import augmentation_seeds, random_stream
from ompq.data.splits import FileSplit, Split, TensorSplit
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess

_PIECE = 256


@dataclass(frozen=True)
class CalibrationImages:
    """This rank's part of the calibration images.

    `images` is n_rank × 3 × H × W, float32; `labels` n_rank, int64, −1 where there are none;
    `skipped` names the unreadable files that were met; `total` is the number of images of all ranks
    together, fewer than were asked for if there are no more.
    """

    images: Tensor
    labels: Tensor
    skipped: list[str]
    total: int


def calibration_images(
    dataset: str,
    root: str | Path | None,
    preprocess: Preprocess,
    num_images: int,
    *,
    seed: int = 0,
    backend: str = "auto",
    workers: int = 0,
    augment: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> CalibrationImages:
    """`num_images` seeded training images, in memory at once; of them this rank's shard.

    The same seed gives the same images for every world size; shards are contiguous and their sizes
    differ by at most one. Every rank decodes all of them, since which files are readable shows only
    then. Folders may be plain, without classes: `root/*.jpg` or `root/train/*.jpg`.

    Raises:
        OmpqError: the data set cannot be opened, or has fewer than two readable images.
    """
    chosen = _choose(dataset, root, preprocess, num_images, seed, backend, workers, augment)
    skipped: list[str] = []
    ((images, labels),) = rebatch(chosen.pieces(skipped), [chosen.wanted])
    if len(labels) < 2:
        raise OmpqError(
            f"calibration needs two images or more; {root or dataset} gave one ({num_images} asked "
            f"for, {len(skipped)} unreadable)"
        )
    size, extra = divmod(len(labels), world_size)
    start = rank * size + min(rank, extra)
    shard = slice(start, start + size + (rank < extra))
    return CalibrationImages(images[shard].clone(), labels[shard].clone(), skipped, len(labels))


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
    """The images of `calibration_images` as batches, without holding them all; all ranks the same.

    Unreadable files are skipped, added to `skipped`, and replaced by further images while there
    are any. The images are split into batches of nearly equal size, none above `batch_size`.

    Raises:
        OmpqError: the data set cannot be opened, or no image can be read.
    """
    check_positive(batch_size=batch_size)
    chosen = _choose(dataset, root, preprocess, num_images, seed, backend, workers, augment)
    pieces = chosen.pieces(skipped if skipped is not None else [])
    sizes = batch_sizes(chosen.wanted, batch_size)
    return (images for images, _ in rebatch(pieces, sizes))


@dataclass(frozen=True)
class _Chosen:
    """An opened data set with the order in which its images are taken."""

    split: Split
    info: DatasetInfo
    preprocess: Preprocess
    order: Tensor
    wanted: int
    seeds: Tensor | None
    backend: str
    workers: int

    def pieces(self, skipped: list[str]) -> Iterator[Batch]:
        """Normalised images and labels, `wanted` of them if so many can be read."""
        if isinstance(self.split, FileSplit):
            return self._from_files(self.split, skipped)
        return self._from_memory(self.split)

    def _from_memory(self, split: TensorSplit) -> Iterator[Batch]:
        for start in range(0, self.wanted, _PIECE):
            part = slice(start, min(start + _PIECE, self.wanted))
            seeds = None if self.seeds is None else self.seeds[part]
            yield from_memory(split, self.order[part], self.info, self.preprocess, seeds)

    def _from_files(self, split: FileSplit, skipped: list[str]) -> Iterator[Batch]:
        """Decode as many files as are wanted, then as many more as were unreadable, and so on."""
        start, missing = 0, self.wanted
        while missing and start < len(self.order):
            part = slice(start, start + missing)
            indices = self.order[part].tolist()
            for piece in decode(
                [split.paths[index] for index in indices],
                self.preprocess,
                backend=self.backend,
                workers=self.workers,
                seeds=None if self.seeds is None else self.seeds[part].tolist(),
            ):
                skipped += [str(split.paths[indices[position]]) for position in piece.unreadable]
                missing -= len(piece.readable)
                labels = split.labels[[indices[position] for position in piece.readable]]
                yield normalise(piece.images, self.preprocess), labels
            start += len(indices)
        if missing == self.wanted:
            raise OmpqError(f"none of {len(skipped)} images can be read (the first: {skipped[0]})")


def _choose(
    dataset: str,
    root: str | Path | None,
    preprocess: Preprocess,
    num_images: int,
    seed: int,
    backend: str,
    workers: int,
    augment: bool,
) -> _Chosen:
    check_positive(num_images=num_images)
    info = dataset_info(dataset)
    backend = choose_backend(backend)
    folder = Path(root) if root is not None else None
    if info.open_for_calibration is not None:
        opened = info.open_for_calibration(folder)
    else:
        opened = info.open(folder, "train")
    total = len(opened.labels)
    return _Chosen(
        split=opened,
        info=info,
        preprocess=preprocess,
        order=torch.randperm(total, generator=random_stream(seed, "subset")),
        wanted=min(num_images, total),
        seeds=augmentation_seeds(total, seed) if augment else None,
        backend=backend,
        workers=workers,
    )
