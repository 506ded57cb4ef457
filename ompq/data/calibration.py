"""A handful of training images, chosen by seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ompq.data.batching import Batch, batch_sizes, rebatch
from ompq.data.datasets.classes import describe_classes, match_classes
from ompq.data.datasets.registry import DatasetInfo, find_dataset
from ompq.data.datasets.splits import FileSplit, Split, TensorSplit
from ompq.data.decoding.backends import choose_backend, decode
from ompq.data.loader import check_positive, prepare_batch
from ompq.data.pixels import normalise
from ompq.data.sampling import draw_augmentation_seeds, seed_generator
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess

_PIECE = 256


@dataclass(frozen=True)
class CalibrationImages:
    """Calibration images in memory.

    Attributes:
        images: Normalised images, n × C × H × W, float32; n is smaller than what was asked for
            where the data set has no more readable images.
        labels: Class of each image, n, int64; −1 where there is none.
        skipped: Paths of the unreadable files that were met.
        notes: What a user should know of the images, one line each.
    """

    images: Tensor
    labels: Tensor
    skipped: list[str]
    notes: Sequence[str] = ()


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
    num_classes: int | None = None,
) -> CalibrationImages:
    """Load seeded training images, all of them at once.

    One seed gives the same images in every process. Unreadable files are skipped and replaced by
    further images while there are any. A folder may be plain, without classes: `root/*.jpg` or
    `root/train/*.jpg`.

    Args:
        dataset: Name of the data set, one of `DATASETS`.
        root: Folder of the data set; None for data sets that need none.
        preprocess: Preprocessing of the images.
        num_images: Number of images, at least 2.
        seed: Seed that chooses the images, and their augmentation.
        backend: "auto", "torchvision" or "dali", the decoder of image files.
        workers: Number of threads that decode files; 0 for none beside this one.
        augment: Whether images are cropped or shifted and flipped at random, as in training.
        num_classes: Number of the network's classes, where labels matter; see `make_loader`.

    Raises:
        OmpqError: The data set cannot be opened, or has fewer than two readable images.
    """
    chosen = _choose(
        dataset,
        root,
        preprocess,
        num_images,
        seed=seed,
        backend=backend,
        workers=workers,
        augment=augment,
        num_classes=num_classes,
    )
    ((images, labels),) = rebatch(chosen.read(), [chosen.wanted])
    if len(labels) < 2:
        raise OmpqError(
            f"calibration needs two images or more; {root or dataset} gave one ({num_images} asked "
            f"for, {len(chosen.skipped)} unreadable)"
        )
    return CalibrationImages(images, labels, chosen.skipped, chosen.notes)


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
) -> CalibrationBatches:
    """Load seeded training images batch by batch, without holding them all.

    The images are those of `calibration_images`, in their order, on every rank. They are split
    into batches of nearly equal size.

    Args:
        dataset: Name of the data set, one of `DATASETS`.
        root: Folder of the data set; None for data sets that need none.
        preprocess: Preprocessing of the images.
        num_images: Number of images, at least 1.
        batch_size: Greatest number of images in a batch, at least 1.
        seed: Seed that chooses the images, and their augmentation.
        workers: Number of threads that decode files; 0 for none beside this one.
        backend: "auto", "torchvision" or "dali", the decoder of image files.
        augment: Whether images are cropped or shifted and flipped at random, as in training.

    Returns:
        Batches of normalised images, n × C × H × W, float32, to be iterated over once.

    Raises:
        OmpqError: The data set cannot be opened, or (while iterating) no image can be read.
    """
    check_positive(batch_size=batch_size)
    chosen = _choose(
        dataset,
        root,
        preprocess,
        num_images,
        seed=seed,
        backend=backend,
        workers=workers,
        augment=augment,
    )
    return CalibrationBatches(chosen, batch_sizes(chosen.wanted, batch_size))


class CalibrationBatches:
    """Batches of calibration images (n × C × H × W), to be iterated over once.

    `skipped` names the unreadable files that were met so far, `notes` what a user should know.
    """

    def __init__(self, chosen: _Chosen, sizes: Sequence[int]) -> None:
        self.skipped, self.notes = chosen.skipped, chosen.notes
        self._batches = rebatch(chosen.read(), sizes)

    def __iter__(self) -> Iterator[Tensor]:
        return (images for images, _ in self._batches)


@dataclass(frozen=True)
class _Chosen:
    """An opened data set with the order in which its images are taken.

    `skipped` names the unreadable files met while reading.
    """

    split: Split
    info: DatasetInfo
    preprocess: Preprocess
    order: Tensor
    wanted: int
    seeds: Tensor | None
    backend: str
    workers: int
    skipped: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Return what a user should know of the opened images, one line each."""
        return [*self.split.notes, *describe_classes(self.split)]

    def read(self) -> Iterator[Batch]:
        """Read normalised images and labels, `wanted` of them if so many are readable."""
        if isinstance(self.split, FileSplit):
            return self._read_files(self.split)
        return self._read_memory(self.split)

    def _read_memory(self, split: TensorSplit) -> Iterator[Batch]:
        for start in range(0, self.wanted, _PIECE):
            part = slice(start, min(start + _PIECE, self.wanted))
            seeds = None if self.seeds is None else self.seeds[part]
            yield prepare_batch(split, self.order[part], self.info, self.preprocess, seeds)

    def _read_files(self, split: FileSplit) -> Iterator[Batch]:
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
                unreadable = [split.paths[indices[position]] for position in piece.unreadable]
                self.skipped.extend(map(str, unreadable))
                missing -= len(piece.readable)
                labels = split.labels[[indices[position] for position in piece.readable]]
                yield normalise(piece.images, self.preprocess), labels
            start += len(indices)
        if missing == self.wanted:
            first = self.skipped[0]
            raise OmpqError(f"none of {len(self.skipped)} images can be read (the first: {first})")


def _choose(
    dataset: str,
    root: str | Path | None,
    preprocess: Preprocess,
    num_images: int,
    *,
    seed: int,
    backend: str,
    workers: int,
    augment: bool,
    num_classes: int | None = None,
) -> _Chosen:
    check_positive(num_images=num_images)
    preprocess.check_colours()
    info = find_dataset(dataset)
    backend = choose_backend(backend)
    folder = Path(root) if root is not None else None
    if info.open_for_calibration is not None:
        opened = info.open_for_calibration(folder)
    else:
        opened = info.open(folder, "train")
    total = len(opened.labels)
    return _Chosen(
        split=match_classes(opened, num_classes=num_classes),
        info=info,
        preprocess=preprocess,
        # A permutation of all images, not of those wanted: what replaces unreadable ones, and
        # whatever more is asked for, comes after them.
        order=torch.randperm(total, generator=seed_generator(seed, "subset")),
        wanted=min(num_images, total),
        seeds=draw_augmentation_seeds(total, seed) if augment else None,
        backend=backend,
        workers=workers,
    )
