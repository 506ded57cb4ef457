"""Batches of a data set: seeded, sharded across ranks, unreadable images left out and named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice, repeat
from pathlib import Path

from torch import Tensor
from torch.nn.functional import pad

from ompq.data.batching import Batch, rebatch
from ompq.data.decoding import choose_backend, decode
from ompq.data.pixels import normalise, resize_and_crop, shift_and_flip
from ompq.data.registry import DatasetInfo, dataset_info, open_split
from ompq.data.sampling import augmentation_seeds, shard_positions, shuffled, subset
from ompq.data.splits import FileSplit, Split, TensorSplit
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess


@dataclass
class Loader:
    """Iterates over (images B × 3 × H × W float32, labels B int64), both on the CPU.

    Without `shuffle` the ranks' shards cover every image once. With it, every epoch (`set_epoch`)
    has its own order, the same for every world size, and all ranks get equally many images: those
    lost to unreadable files are made up for by further ones of the shard, so that no rank waits
    for another. Augmentation depends on the seed, the epoch and the place in the global order only.

    `skipped` names the unreadable files met so far, in the order they were met.
    """

    split: Split
    info: DatasetInfo
    preprocess: Preprocess
    batch_size: int
    augment: bool = False
    shuffle: bool = False
    seed: int = 0
    workers: int = 0
    backend: str = "torchvision"
    rank: int = 0
    world_size: int = 1
    num_samples: int | None = None
    epoch: int = 0
    skipped: list[str] = field(default_factory=list)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 where the images have no labels."""
        return self.split.num_classes

    @property
    def num_images(self) -> int:
        """Number of images of all ranks, unreadable ones included."""
        total = len(self.split.labels)
        return total if self.num_samples is None else min(self.num_samples, total)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of this rank (unreadable files may leave fewer, except with `shuffle`)."""
        return -(-len(self._positions()) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = subset(len(self.split.labels), self.num_samples, self.seed)
        if self.shuffle:
            order = shuffled(order, self.seed, self.epoch)
        positions = self._positions()
        seeds = augmentation_seeds(len(order), self.seed, self.epoch) if self.augment else None
        mine = order[positions]
        my_seeds = None if seeds is None else seeds[positions]
        if isinstance(self.split, FileSplit):
            return self._from_files(self.split, mine, my_seeds)
        return self._from_memory(self.split, mine, my_seeds)

    def _positions(self) -> Tensor:
        return shard_positions(self.num_images, self.rank, self.world_size, equal=self.shuffle)

    def _from_memory(
        self, split: TensorSplit, indices: Tensor, seeds: Tensor | None
    ) -> Iterator[Batch]:
        for start in range(0, len(indices), self.batch_size):
            part = slice(start, start + self.batch_size)
            chosen = None if seeds is None else seeds[part]
            yield from_memory(split, indices[part], self.info, self.preprocess, chosen)

    def _from_files(
        self, split: FileSplit, indices: Tensor, seeds: Tensor | None
    ) -> Iterator[Batch]:
        pieces = self._decode(split, indices.tolist(), None if seeds is None else seeds.tolist())
        for images, labels in rebatch(pieces, repeat(self.batch_size)):
            yield normalise(images, self.preprocess), labels

    def _decode(
        self, split: FileSplit, indices: list[int], seeds: list[int] | None
    ) -> Iterator[Batch]:
        """Uint8 images and labels; with `shuffle` exactly as many as there are indices."""
        readable: list[int] = []
        while indices:
            start = len(readable)
            for piece in decode(
                [split.paths[index] for index in indices],
                self.preprocess,
                backend=self.backend,
                workers=self.workers,
                seeds=seeds,
            ):
                self._skip(split.paths[indices[position]] for position in piece.unreadable)
                found = [indices[position] for position in piece.readable]
                readable += found
                yield piece.images, split.labels[found]
            self._check_any(readable, indices, split)
            missing = len(indices) - (len(readable) - start) if self.shuffle else 0
            indices = list(islice(cycle(readable), missing))

    def _check_any(self, readable: Sequence[int], indices: Sequence[int], split: FileSplit) -> None:
        if not readable and (self.shuffle or self.world_size == 1):
            first = split.paths[indices[0]]
            raise OmpqError(f"none of {len(indices)} images can be read (the first is {first})")

    def _skip(self, paths: Iterator[Path]) -> None:
        self.skipped += [str(path) for path in paths if str(path) not in self.skipped]


def from_memory(
    split: TensorSplit,
    indices: Tensor,
    info: DatasetInfo,
    preprocess: Preprocess,
    seeds: Tensor | None = None,
) -> Batch:
    """One batch of a data set in memory, normalised.

    Args:
        indices: of the images, int64.
        seeds: one per image to shift and flip it as in training; None for evaluation.
    """
    images = pad(split.images[indices], (split.border,) * 4)
    if seeds is not None:
        images = shift_and_flip(images, info.shift, info.flip, seeds)
    images = resize_and_crop(images, preprocess, split.white)
    return normalise(images, preprocess, split.white), split.labels[indices]


def make_loader(
    dataset: str,
    root: str | Path | None,
    split: str,
    preprocess: Preprocess,
    batch_size: int,
    *,
    augment: bool = False,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 0,
    backend: str = "auto",
    rank: int = 0,
    world_size: int = 1,
    num_samples: int | None = None,
) -> Loader:
    """Open `split` (`train` or `val`) of a data set.

    Args:
        dataset: a name in `DATASETS`.
        root: its folder; None for data sets that need none.
        split: `train` or `val`.
        preprocess: see `preprocess_for`.
        batch_size: images per batch of this rank.
        augment: transform as for training.
        shuffle: a new seeded order every epoch, for training.
        seed: of the order, the subset and the augmentation.
        workers: threads that decode files; 0 for none beside this one.
        backend: `auto`, `torchvision` or `dali`, for files; data in memory needs neither.
        rank: this process among `world_size`.
        world_size: number of processes that share the data set.
        num_samples: a fixed seeded subset of that many images.

    Raises:
        OmpqError: unknown data set, missing folder, no images, DALI not installed, a batch size or
            number of samples that is not positive, fewer images than ranks in training.
    """
    check_positive(batch_size=batch_size, num_samples=num_samples)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not within a world of {world_size}")
    backend = choose_backend(backend)
    opened = open_split(dataset, root, split)
    loader = Loader(
        opened,
        dataset_info(dataset),
        preprocess,
        batch_size,
        augment=augment,
        shuffle=shuffle,
        seed=seed,
        workers=workers,
        backend=backend,
        rank=rank,
        world_size=world_size,
        num_samples=num_samples,
    )
    if shuffle and loader.num_images < world_size:
        raise OmpqError(
            f"{world_size} ranks cannot share {loader.num_images} image(s); start fewer processes"
        )
    return loader


def unreadable_note(skipped: Sequence[str]) -> list[str]:
    """A sentence on the files that were left out; none where there are none."""
    if not skipped:
        return []
    shown = ", ".join(skipped[:3]) + (", …" if len(skipped) > 3 else "")
    return [f"{len(skipped)} unreadable image(s) skipped: {shown}"]


def check_positive(**values: int | None) -> None:
    """Refuse values below 1, by the name of their option.

    Raises:
        OmpqError: names the first one.
    """
    for name, value in values.items():
        if value is not None and value < 1:
            raise OmpqError(f"{name} is {value}; it must be at least 1")
