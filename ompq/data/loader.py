"""Batches of a data set: seeded, sharded across ranks, unreadable images left out and named."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_images

from ompq.data.decoding import choose_backend, decode
from ompq.data.splits import DatasetInfo, FileSplit, Split, TensorSplit, dataset_info
from ompq.preprocess import Preprocess

Batch = tuple[Tensor, Tensor]


def preprocess_for(dataset: str, network: Preprocess) -> Preprocess:
    """The data set's own preprocessing where it has one native size, else the network's."""
    return dataset_info(dataset).preprocess or network


@dataclass
class Loader:
    """Iterates over (images B × 3 × H × W float32, labels B int64), both on the CPU.

    `skipped` names the unreadable files met so far. With `shuffle`, every epoch (`set_epoch`) has
    its own seeded order, the same for every world size, and ranks get equally many images; without,
    the ranks' shards cover every image once.
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

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self.epoch = epoch

    def order(self) -> list[int]:
        """Indices of this rank in this epoch."""
        total = len(self.split.labels)
        chosen = torch.arange(total)
        if self.num_samples is not None and self.num_samples < total:
            generator = torch.Generator().manual_seed(self.seed)
            chosen = torch.randperm(total, generator=generator)[: self.num_samples].sort().values
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 7919 + self.epoch)
            chosen = chosen[torch.randperm(len(chosen), generator=generator)]
            chosen = chosen[: len(chosen) // self.world_size * self.world_size]
        return [int(index) for index in chosen[self.rank :: self.world_size]]

    def __len__(self) -> int:
        return math.ceil(len(self.order()) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = self.order()
        for start in range(0, len(order), self.batch_size):
            if isinstance(self.split, FileSplit):
                yield from self._from_files(order)
                return
            yield self._from_memory(self.split, order[start : start + self.batch_size], start)

    def _from_memory(self, split: TensorSplit, indices: list[int], start: int) -> Batch:
        images = split.images[indices]
        if self.augment:
            seed = (self.seed * 7919 + self.epoch) * 100_003 + start * self.world_size + self.rank
            images = _shift_and_flip(images, self.info.pad, self.info.flip, seed)
        return normalise(images, self.preprocess), split.labels[indices]

    def _from_files(self, order: list[int]) -> Iterator[Batch]:
        assert isinstance(self.split, FileSplit)
        paths = [self.split.paths[index] for index in order]
        images: list[Tensor] = []
        labels: list[int] = []
        decoded = decode(
            paths,
            self.preprocess,
            backend=self.backend,
            workers=self.workers,
            augment=self.augment,
            seed=self.seed * 7919 + self.epoch,
        )
        for position, image in decoded:
            if image is None:
                self._skip(paths[position])
            else:
                images.append(image)
                labels.append(int(self.split.labels[order[position]]))
            if len(images) == self.batch_size:
                yield torch.stack(images), torch.tensor(labels)
                images, labels = [], []
        if images:
            yield torch.stack(images), torch.tensor(labels)

    def _skip(self, path: Path) -> None:
        if str(path) not in self.skipped:
            self.skipped.append(str(path))


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
        preprocess: see `preprocess_for`.
        batch_size: images per batch of this rank.
        augment: transform as for training.
        shuffle: a new seeded order every epoch.
        workers: processes that decode files.
        backend: `auto`, `torchvision` or `dali`, for files.
        num_samples: a fixed seeded subset of that many images.

    Raises:
        OmpqError: unknown data set, missing folder, no images, DALI not installed.
    """
    info = dataset_info(dataset)
    opened = info.open(Path(root) if root is not None else None, split)
    return Loader(
        opened,
        info,
        preprocess,
        batch_size,
        augment=augment,
        shuffle=shuffle,
        seed=seed,
        workers=workers,
        backend=choose_backend(backend) if isinstance(opened, FileSplit) else "torchvision",
        rank=rank,
        world_size=world_size,
        num_samples=num_samples,
    )


def normalise(images: Tensor, preprocess: Preprocess) -> Tensor:
    """(images − mean) / std, resized where the preprocessing asks for another size.

    Args:
        images: n × 3 × H × W in 0..1.
    """
    if images.shape[-1] != preprocess.input_size:
        size = (preprocess.input_size, preprocess.input_size)
        mode = preprocess.interpolation
        images = torch.nn.functional.interpolate(images, size, mode=mode, antialias=True)
    mean = torch.tensor(preprocess.mean).view(1, -1, 1, 1)
    std = torch.tensor(preprocess.std).view(1, -1, 1, 1)
    return (images - mean) / std


def _shift_and_flip(images: Tensor, padding: int, flip: bool, seed: int) -> Tensor:
    """Shift each image by up to `padding` pixels and flip half of them."""
    generator = torch.Generator().manual_seed(seed)
    count, _, height, width = images.shape
    rows, columns = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    padded = pad_images(images, (padding,) * 4).permute(0, 2, 3, 1)
    chosen_rows = (rows + torch.arange(height)).unsqueeze(2)
    column = (columns + torch.arange(width)).unsqueeze(1)
    shifted = padded[torch.arange(count).view(-1, 1, 1), chosen_rows, column].permute(0, 3, 1, 2)
    if not flip:
        return shifted
    flipped = torch.rand(count, generator=generator) < 0.5
    return torch.where(flipped.view(-1, 1, 1, 1), shifted.flip(-1), shifted)
