"""Fashion-MNIST: 70 000 photographs of clothes, read from its four idx files."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ompq.data.datasets.download import download, find_cache_folder
from ompq.data.datasets.splits import TensorSplit
from ompq.errors import OmpqError

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_PREFIXES = {"train": "train", "val": "t10k"}
_UNSIGNED_BYTES = 8
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def open_fashion_mnist(root: Path | None, split: str) -> TensorSplit:
    """Open Fashion-MNIST: 28 × 28 grey pixels, framed in black when larger batches are made.

    Args:
        root: Folder of the idx files (.gz or plain), or one with torchvision's `FashionMNIST/raw`
            in it; None for Debian's, or this user's download.
        split: "train" or "val" (the 10 000 test images).

    Raises:
        OmpqError: The files are missing and cannot be downloaded, or are damaged.
    """
    folder = _find_folder(root)
    prefix = _PREFIXES[split]
    images = torch.from_numpy(read_idx(folder / f"{prefix}-images-idx3-ubyte"))
    labels = torch.from_numpy(read_idx(folder / f"{prefix}-labels-idx1-ubyte")).long()
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise OmpqError(
            f"{folder}: {prefix}-images is {tuple(images.shape)} and {prefix}-labels "
            f"{tuple(labels.shape)}; expected n×28×28 and n; download the files again"
        )
    return TensorSplit(images.unsqueeze(1), labels, num_classes=10, class_names=CLASSES)


def _find_folder(root: Path | None) -> Path:
    where = root or find_cache_folder()
    places = [where, where / "FashionMNIST" / "raw"]
    if root is None:
        places.insert(0, DEBIAN_FOLDER)
    for place in places:
        if any(place.glob("*-images-idx3-ubyte*")):
            return place
    from torchvision.datasets import FashionMNIST

    advice = (
        f"Fashion-MNIST is not in {places[0]} and cannot be downloaded; install the Debian package "
        "dataset-fashion-mnist, or give the folder of its four idx files as `root`"
    )
    return download(FashionMNIST, where, "FashionMNIST", advice) / "raw"


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, plain or packed by gzip.

    The format (Y. LeCun): two zero bytes, the type, the number of dimensions, then their sizes as
    big-endian int32, then the values.

    Args:
        path: Path of the plain file; the packed one has ".gz" after it.

    Returns:
        The values in the shape that the file gives.

    Raises:
        OmpqError: The file is missing or damaged.
    """
    packed = path.with_name(path.name + ".gz")
    try:
        content = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
        if len(content) < 4 or content[:3] != bytes([0, 0, _UNSIGNED_BYTES]):
            raise ValueError("this is no idx file of unsigned bytes")
        shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
        # A copy, since PyTorch warns of arrays that cannot be written to.
        return values.reshape(shape).copy()
    except FileNotFoundError as error:
        raise OmpqError(f"{path} is missing (plain or .gz); put it beside the others") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise OmpqError(f"{path} is damaged: {error}; download it again") from error
