"""The data sets by name, and what is known of each before it is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ompq.data.datasets.cifar10 import open_cifar10
from ompq.data.datasets.digits import open_digits
from ompq.data.datasets.fashion_mnist import open_fashion_mnist
from ompq.data.datasets.folders import SPLITS, open_folder, open_for_calibration, open_images
from ompq.data.datasets.splits import Split
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess

Opener = Callable[[Path | None, str], Split]


@dataclass(frozen=True)
class DatasetInfo:
    """Description of a data set: how it is opened, and how its images are treated.

    Attributes:
        open: Function that opens one of `splits`, given the folder (or None) and the split's name.
        preprocess: Preprocessing of a data set whose images have one native size, else None.
        num_classes: Number of classes; None where the folder tells it.
        splits: Names of the splits.
        open_for_calibration: Function that opens images whose labels nobody asks for, given the
            folder; None where `open` does.
        shift: Largest shift of training images in memory, in pixels. Image files are cropped and
            resized at random instead.
        flip: Whether training images in memory are mirrored at random.
        border: Number of black pixels on each side in `preprocess` that the stored images have not.
    """

    open: Opener
    preprocess: Preprocess | None = None
    num_classes: int | None = None
    splits: tuple[str, ...] = SPLITS
    open_for_calibration: Callable[[Path | None], Split] | None = None
    shift: int = 0
    flip: bool = False
    border: int = 0


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
        border=2,
    ),
    "digits": DatasetInfo(
        open_digits,
        Preprocess(8, 8, (0.3058,) * 3, (0.3764,) * 3),
        num_classes=10,
        # A mirrored digit is no digit, so `flip` stays off.
        shift=1,
    ),
}


def find_dataset(name: str) -> DatasetInfo:
    """Return what is known of the data set called `name`.

    Raises:
        OmpqError: There is none.
    """
    if name not in DATASETS:
        raise OmpqError(f"`dataset` {name}: unknown; choose one of {', '.join(DATASETS)}")
    return DATASETS[name]


def open_split(name: str, root: str | Path | None, split: str) -> Split:
    """Open a split of a data set.

    Args:
        name: Name of the data set, one of `DATASETS`.
        root: Folder of the data set; None for data sets that need none.
        split: "train" or "val".

    Raises:
        OmpqError: The data set or the split is unknown, or the folder is missing or holds no
            images.
    """
    info = find_dataset(name)
    if split not in info.splits:
        raise OmpqError(f"`dataset` {name} has no split {split!r}; it has {', '.join(info.splits)}")
    return info.open(Path(root) if root is not None else None, split)


def preprocess_for(dataset: str, network: Preprocess) -> Preprocess:
    """Return the preprocessing for images of a data set that a network is to see.

    Args:
        dataset: Name of the data set, one of `DATASETS`.
        network: Preprocessing of the network.

    Returns:
        The data set's own preprocessing where its images have one native size, in the channels of
        `network`; else `network`. `choose_preprocess` heeds what a network's author says too.

    Raises:
        OmpqError: The data set is unknown, or has no such number of channels.

    >>> preprocess_for("cifar10", Preprocess()).input_size
    32
    >>> preprocess_for("imagenet", Preprocess()).input_size
    224
    """
    native = find_dataset(dataset).preprocess
    return network if native is None else native.with_channels(network.channels)
