"""The data sets by name, and what is known of each before it is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ompq.data.cifar10 import open_cifar10
from ompq.data.digits import open_digits
from ompq.data.fashion_mnist import open_fashion_mnist
from ompq.data.folders import open_folder, open_for_calibration, open_images
from ompq.data.splits import Split
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess

SPLITS = ("train", "val")
Opener = Callable[[Path | None, str], Split]


@dataclass(frozen=True)
class DatasetInfo:
    """How to open a data set and how its images are treated.

    `open(root, split)` gives one of `splits`; `open_for_calibration`, where set, is used instead of
    it for images whose labels nobody asks for. `preprocess` is set where the images have one native
    size. `num_classes` is None where the folder tells it. Training images in memory are shifted by
    up to `shift` pixels and flipped if `flip`; files are cropped and resized at random instead.
    """

    open: Opener
    preprocess: Preprocess | None = None
    num_classes: int | None = None
    splits: tuple[str, ...] = SPLITS
    open_for_calibration: Callable[[Path | None], Split] | None = None
    shift: int = 0
    flip: bool = False


_FOLDER = DatasetInfo(open_folder, open_for_calibration=open_for_calibration)

DATASETS = {
    "imagenet": _FOLDER,
    "folder": _FOLDER,
    "imagefolder": _FOLDER,
    "images": DatasetInfo(open_images),
    "cifar10": DatasetInfo(
        open_cifar10,
        Preprocess(32, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        num_classes=10,
        shift=4,
        flip=True,
    ),
    "fashion_mnist": DatasetInfo(
        open_fashion_mnist,
        Preprocess(32, 32, (0.2860,) * 3, (0.3530,) * 3),
        num_classes=10,
        shift=2,
        flip=True,
    ),
    "digits": DatasetInfo(
        open_digits,
        Preprocess(8, 8, (0.3058,) * 3, (0.3764,) * 3),
        num_classes=10,
        shift=1,
    ),
}


def dataset_info(name: str) -> DatasetInfo:
    """The data set called `name`.

    Raises:
        OmpqError: there is none.
    """
    if name not in DATASETS:
        raise OmpqError(f"--dataset {name}: unknown; choose one of {', '.join(DATASETS)}")
    return DATASETS[name]


def open_split(name: str, root: str | Path | None, split: str) -> Split:
    """Open `split` of the data set called `name`.

    Raises:
        OmpqError: unknown data set or split, missing folder, no images.
    """
    info = dataset_info(name)
    if split not in info.splits:
        raise OmpqError(f"--dataset {name} has no split {split!r}; it has {', '.join(info.splits)}")
    return info.open(Path(root) if root is not None else None, split)


def preprocess_for(dataset: str, network: Preprocess) -> Preprocess:
    """The data set's own preprocessing where it has a native size, else the network's."""
    return dataset_info(dataset).preprocess or network
