"""Batches of a data set: seeded, sharded across ranks, unreadable images left out and named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import cycle, islice, repeat
from pathlib import Path

from torch import Tensor
from torch.nn.functional import pad

from ompq.data.batching import Batch, rebatch
from ompq.data.datasets.classes import describe_classes, match_classes
from ompq.data.datasets.registry import DatasetInfo, find_dataset, open_split
from ompq.data.datasets.splits import FileSplit, Split, TensorSplit
from ompq.data.decoding.backends import choose_backend, decode
from ompq.data.pixels import convert_channels, normalise, resize_and_crop, shift_and_flip
from ompq.data.sampling import (
    choose_subset,
    draw_augmentation_seeds,
    select_shard,
    shuffle_indices,
)
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess


@dataclass
class Loader:
    """An iterable over batches: images B × C × H × W (float32) and labels B (int64), on the CPU.

    Without `shuffle` the ranks' shards cover every image once. With it, every epoch (`set_epoch`)
    has an order of its own, which does not depend on the world size, and all ranks get equally many
    images: those lost to unreadable files are made up for by further ones of the shard, so that no
    rank waits for another. Augmentation depends on the seed, the epoch and the place in the global
    order only. Make one with `make_loader`.

    Attributes:
        split: The opened images and labels.
        info: What is known of the data set.
        preprocess: Preprocessing of the images.
        batch_size: Number of images in a batch of this rank.
        augment: Whether images are cropped or shifted and flipped at random, for training.
        shuffle: Whether every epoch has a new order, for training.
        seed: Seed of the order, the subset and the augmentation.
        workers: Number of threads that decode files; 0 for none beside this one.
        backend: "torchvision" or "dali", the decoder of image files.
        rank: Rank of this process.
        world_size: Number of processes that share the data set.
        num_samples: Size of the fixed seeded subset that is used; None for all images.
        epoch: Number of the current epoch; `set_epoch` sets it.
        skipped: Paths of the unreadable files met so far, in the order they were met.
    """

    split: Split
    info: DatasetInfo
    preprocess: Preprocess
    batch_size: int
    _: KW_ONLY
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
        """Return the number of classes; 0 where the images have no labels."""
        return self.split.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of their numbers; none without labels."""
        return self.split.class_names

    @property
    def notes(self) -> list[str]:
        """Return what a user should know of the opened images, one line each."""
        return [*self.split.notes, *describe_classes(self.split)]

    @property
    def num_images(self) -> int:
        """Return the number of images of all ranks together, unreadable ones included."""
        total = len(self.split.labels)
        return total if self.num_samples is None else min(self.num_samples, total)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of this rank.

        Unreadable files may leave fewer, except with `shuffle`.
        """
        return -(-len(self._select_positions()) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over one epoch."""
        order = choose_subset(len(self.split.labels), self.num_samples, self.seed)
        if self.shuffle:
            order = shuffle_indices(order, self.seed, self.epoch)
        positions = self._select_positions()
        seeds = draw_augmentation_seeds(len(order), self.seed, self.epoch) if self.augment else None
        mine = order[positions]
        my_seeds = None if seeds is None else seeds[positions]
        if isinstance(self.split, FileSplit):
            return self._read_files(self.split, mine, my_seeds)
        return self._read_memory(self.split, mine, my_seeds)

    def _select_positions(self) -> Tensor:
        return select_shard(self.num_images, self.rank, self.world_size, equal=self.shuffle)

    def _read_memory(
        self, split: TensorSplit, indices: Tensor, seeds: Tensor | None
    ) -> Iterator[Batch]:
        for start in range(0, len(indices), self.batch_size):
            part = slice(start, start + self.batch_size)
            chosen = None if seeds is None else seeds[part]
            yield prepare_batch(split, indices[part], self.info, self.preprocess, chosen)

    def _read_files(
        self, split: FileSplit, indices: Tensor, seeds: Tensor | None
    ) -> Iterator[Batch]:
        pieces = self._decode(split, indices.tolist(), None if seeds is None else seeds.tolist())
        for images, labels in rebatch(pieces, repeat(self.batch_size)):
            yield normalise(images, self.preprocess), labels

    def _decode(
        self, split: FileSplit, indices: list[int], seeds: list[int] | None
    ) -> Iterator[Batch]:
        """Decode uint8 images and labels; with `shuffle` exactly as many as there are indices."""
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
                self._note_skipped(split.paths[indices[position]] for position in piece.unreadable)
                found = [indices[position] for position in piece.readable]
                readable += found
                yield piece.images, split.labels[found]
            self._check_any(readable, indices, split)
            # Ranks that step together need equally many batches: repeat readable images in the
            # place of those that were lost.
            missing = len(indices) - (len(readable) - start) if self.shuffle else 0
            indices = list(islice(cycle(readable), missing))

    def _check_any(self, readable: Sequence[int], indices: Sequence[int], split: FileSplit) -> None:
        # Without `shuffle`, other ranks may have readable images where this one has none.
        if not readable and (self.shuffle or self.world_size == 1):
            first = split.paths[indices[0]]
            raise OmpqError(f"none of {len(indices)} images can be read (the first is {first})")

    def _note_skipped(self, paths: Iterator[Path]) -> None:
        self.skipped += [str(path) for path in paths if str(path) not in self.skipped]


def prepare_batch(
    split: TensorSplit,
    indices: Tensor,
    info: DatasetInfo,
    preprocess: Preprocess,
    seeds: Tensor | None = None,
) -> Batch:
    """Prepare one batch of a data set that is in memory.

    Args:
        split: Images and labels.
        indices: Indices of the images in `split`, n, int64.
        info: What is known of the data set: how far images are shifted, whether they are flipped.
        preprocess: Preprocessing of the images.
        seeds: One seed for each image, n, int64, to shift and flip it as in training; None for
            evaluation.

    Returns:
        Normalised images, n × channels × H × W, float32, and labels, n, int64.
    """
    images = convert_channels(split.images[indices], preprocess.channels, split.white)
    images = pad(images, (_choose_border(images, info, preprocess),) * 4)
    if seeds is not None:
        images = shift_and_flip(images, info.shift, info.flip, seeds)
    images = resize_and_crop(images, preprocess, split.white)
    return normalise(images, preprocess, split.white), split.labels[indices]


def _choose_border(images: Tensor, info: DatasetInfo, preprocess: Preprocess) -> int:
    """Choose how many black pixels frame the images: as many as fit into what they become."""
    room = preprocess.resize - images.shape[-1]
    return min(info.border, max(0, room // 2))


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
    fraction: float = 1.0,
    class_names: Sequence[str] = (),
    num_classes: int | None = None,
) -> Loader:
    """Open a split of a data set and return a loader of its batches.

    Args:
        dataset: Name of the data set, one of `DATASETS`.
        root: Folder of the data set; None for data sets that need none.
        split: "train" or "val".
        preprocess: Preprocessing of the images; see `preprocess_for`.
        batch_size: Number of images in a batch of this rank, at least 1.
        augment: Whether images are cropped or shifted and flipped at random, for training.
        shuffle: Whether every epoch has a new seeded order, for training.
        seed: Seed of the order, the subset and the augmentation.
        workers: Number of threads that decode files; 0 for none beside this one.
        backend: "auto", "torchvision" or "dali", the decoder of image files; images in memory need
            neither.
        rank: Rank of this process.
        world_size: Number of processes that share the data set.
        num_samples: Size of a fixed seeded subset to use, at least 1; None for all images.
        fraction: Share of the images (of `num_samples` where that is given) to use as a fixed
            seeded subset, above 0 and at most 1; every rank keeps one image at least.
        class_names: Names of the network's classes in the order of its outputs, where they are
            known: the images get these numbers, by the names of their own classes.
        num_classes: Number of the network's classes, where it is known: it tells whether class
            folders without images count.

    Raises:
        OmpqError: The data set is unknown, its folder is missing or holds no images, a class of the
            images is none of the network's, images have no such number of channels, DALI is asked
            for and not installed, `batch_size`, `num_samples` or `fraction` is out of range, or
            there are fewer images than ranks in training.
    """
    check_positive(batch_size=batch_size, num_samples=num_samples)
    if not 0 < fraction <= 1:
        raise OmpqError(f"`fraction` is {fraction}; it is a share between 0 and 1")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not within a world of {world_size}")
    backend = choose_backend(backend)
    preprocess.check_colours()
    opened = match_classes(open_split(dataset, root, split), class_names, num_classes)
    if fraction < 1:
        available = min(num_samples or len(opened.labels), len(opened.labels))
        num_samples = max(world_size, round(fraction * available))
    loader = Loader(
        opened,
        find_dataset(dataset),
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
    """Return a sentence on the files that were left out, in a list; an empty list for no files.

    >>> unreadable_note(["a.jpg", "b.jpg"])
    ['2 unreadable image(s) skipped: a.jpg, b.jpg']
    """
    if not skipped:
        return []
    shown = ", ".join(skipped[:3]) + (", …" if len(skipped) > 3 else "")
    return [f"{len(skipped)} unreadable image(s) skipped: {shown}"]


def check_positive(**values: int | None) -> None:
    """Refuse numbers below 1, given under the names of their parameters; None passes.

    Raises:
        OmpqError: A number is below 1; the first such parameter is named.
    """
    for name, value in values.items():
        if value is not None and value < 1:
            raise OmpqError(f"`{name}` is {value}; it must be at least 1")
