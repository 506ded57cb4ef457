"""What a data set is made of: tensors in memory, or image files."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ompq.errors import OmpqError
from ompq.preprocess import Preprocess

IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .ppm .bmp .pgm .tif .tiff .webp .jpeg2000 .gif".split())
FASHION_MNIST_OF_DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class TensorSplit:
    """Images in memory: N × 3 × H × W, float32 in 0..1; labels N, int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class FileSplit:
    """Image files; labels N, int64, −1 where there are none."""

    paths: tuple[Path, ...]
    labels: Tensor


Split = TensorSplit | FileSplit


@dataclass(frozen=True)
class DatasetInfo:
    """How to open a data set.

    `open(root, split)` gives a split (`train` or `val`). `preprocess` is set where the images have
    one native size; `pad` and `flip` say how its training images are augmented (files are cropped
    and resized at random instead).
    """

    open: Callable[[Path | None, str], Split]
    preprocess: Preprocess | None = None
    num_classes: int | None = None
    pad: int = 0
    flip: bool = True


def _open_folder(root: Path | None, split: str) -> FileSplit:
    """`root/train` or `root/val` with one folder per class."""
    folder = _existing(root) / split
    if not folder.is_dir():
        inside = ", ".join(sorted(entry.name for entry in _existing(root).iterdir())[:6])
        raise OmpqError(
            f"{root} has no folder {split}/ (it holds {inside or 'nothing'}); expected "
            f"{root}/train/CLASS/*.jpg and {root}/val/CLASS/*.jpg, or use --dataset images for a "
            "plain folder of images"
        )
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    found = [(p, index) for index, name in enumerate(classes) for p in _images(folder / name)]
    if not found:
        raise OmpqError(f"{folder} holds no images in class folders (CLASS/*.jpg, *.png, …)")
    paths, labels = zip(*found, strict=True)
    return FileSplit(tuple(paths), torch.tensor(labels))


def _open_images(root: Path | None, split: str) -> FileSplit:
    """Every image below `root`, without labels."""
    paths = tuple(_images(_existing(root)))
    if not paths:
        raise OmpqError(f"{root} holds no images (*.jpg, *.png, …)")
    return FileSplit(paths, torch.full((len(paths),), -1))


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)


def _existing(root: Path | None) -> Path:
    if root is None:
        raise OmpqError("this data set needs its folder; give it with --save_path (or --data)")
    if not root.is_dir():
        raise OmpqError(f"data folder {root} does not exist")
    return root


def _open_digits(root: Path | None, split: str) -> TensorSplit:
    """scikit-learn's 1797 digits of 8 × 8; every fifth image of a class is for validation."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = torch.from_numpy(bunch.target).long()
    rank = torch.stack([(labels[:i] == label).sum() for i, label in enumerate(labels)])
    chosen = (rank % 5 == 4) == (split == "val")
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1).expand(-1, 3, -1, -1)
    return TensorSplit(images[chosen].contiguous(), labels[chosen])


def _open_fashion_mnist(root: Path | None, split: str) -> TensorSplit:
    """Four idx files (plain or .gz), padded to 32 × 32 and repeated to three channels."""
    prefix = {"train": "train", "val": "t10k"}[split]
    folder = _fashion_mnist_folder(root)
    images = torch.from_numpy(_read_idx(folder, f"{prefix}-images-idx3-ubyte"))
    labels = torch.from_numpy(_read_idx(folder, f"{prefix}-labels-idx1-ubyte")).long()
    padded = torch.nn.functional.pad(images.float().div(255).unsqueeze(1), (2, 2, 2, 2))
    return TensorSplit(padded.expand(-1, 3, -1, -1).contiguous(), labels)


def _fashion_mnist_folder(root: Path | None) -> Path:
    places = [root, root / "FashionMNIST" / "raw"] if root else [FASHION_MNIST_OF_DEBIAN]
    for place in places:
        if any(place.glob("train-images-idx3-ubyte*")):
            return place
    from torchvision.datasets import FashionMNIST

    where = root or Path.home() / ".cache" / "ompq"
    try:
        FashionMNIST(str(where), download=True)
    except (OSError, RuntimeError) as error:
        raise OmpqError(
            f"Fashion-MNIST is not in {places[0]} and cannot be downloaded; install the Debian "
            "package dataset-fashion-mnist, or give the folder of its four idx files"
        ) from error
    return where / "FashionMNIST" / "raw"


def _read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """An idx file of unsigned bytes: two zero bytes, type 8, dimensions, sizes, data."""
    plain, packed = folder / name, folder / f"{name}.gz"
    try:
        content = plain.read_bytes() if plain.is_file() else gzip.decompress(packed.read_bytes())
        dimensions = content[3]
        shape = np.frombuffer(content, ">i4", count=dimensions, offset=4)
        data = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
        return data.reshape(shape).copy()
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise OmpqError(f"{folder / name}[.gz] is missing or damaged: {error}") from error


def _open_cifar10(root: Path | None, split: str) -> TensorSplit:
    from torchvision.datasets import CIFAR10

    where = str(root or Path.home() / ".cache" / "ompq")
    try:
        data = CIFAR10(where, train=split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise OmpqError(
            f"CIFAR-10 is not in {where} and cannot be downloaded; give the folder that holds "
            "cifar-10-batches-py with --save_path (or --data)"
        ) from error
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).float().div(255)
    return TensorSplit(images.contiguous(), torch.tensor(data.targets))


_FOLDER = DatasetInfo(_open_folder)
DATASETS = {
    "imagenet": _FOLDER,
    "folder": _FOLDER,
    "images": DatasetInfo(_open_images),
    "cifar10": DatasetInfo(
        _open_cifar10,
        Preprocess(32, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        num_classes=10,
        pad=4,
    ),
    "fashion_mnist": DatasetInfo(
        _open_fashion_mnist, Preprocess(32, 32, (0.2860,) * 3, (0.3530,) * 3), 10, pad=2
    ),
    "digits": DatasetInfo(
        _open_digits, Preprocess(8, 8, (0.3053,) * 3, (0.3760,) * 3), 10, pad=1, flip=False
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
