"""Folders of image files: `train/` and `val/` with a folder per class, or just images."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ompq.data.datasets.splits import FileSplit
from ompq.errors import OmpqError

IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .ppm .pgm .bmp .tif .tiff .webp .gif".split())


def open_folder(root: Path | None, split: str) -> FileSplit:
    """Open `root/SPLIT/CLASS/…/*.jpg`, classes numbered in the order of their names.

    Where there are two splits, `train/` numbers the classes for `val/` too, so that a validation
    folder with fewer classes keeps the right labels.

    Args:
        root: Folder of the data set.
        split: "train" or "val", the name of the folder in `root`.

    Raises:
        OmpqError: A folder is missing or holds no images (what it holds is named), or `val/` has a
            class that `train/` has not.
    """
    root = require_folder(root)
    folder = root / split
    if not folder.is_dir():
        raise OmpqError(
            f"{root} has no folder {split}/ (it holds {_describe_contents(root)}); expected "
            f"{root / 'train'}/CLASS/*.jpg and {root / 'val'}/CLASS/*.jpg"
        )
    classes = _list_classes(root / "train" if (root / "train").is_dir() else folder)
    unknown = [name for name in _list_classes(folder) if name not in classes]
    if classes and unknown:
        raise OmpqError(
            f"{folder} has the class {unknown[0]}, which {root / 'train'} has not; "
            "give both splits the same class folders"
        )
    found = [
        (path, label) for label, name in enumerate(classes) for path in find_images(folder / name)
    ]
    if not found:
        raise OmpqError(
            f"{folder} holds no images in class folders (it holds {_describe_contents(folder)}); "
            f"expected {folder}/CLASS/*.jpg"
        )
    paths, labels = zip(*found, strict=True)
    return FileSplit(paths, torch.tensor(labels), len(classes))


def open_images(root: Path | None, split: str = "") -> FileSplit:
    """Open every image below a folder, without labels.

    Args:
        root: Folder of the images.
        split: Not used; every split is all the images.

    Raises:
        OmpqError: There is no such folder, or no image in it.
    """
    root = require_folder(root)
    paths = tuple(find_images(root))
    if not paths:
        raise OmpqError(
            f"{root} holds no images (it holds {_describe_contents(root)}); expected *.jpg, …"
        )
    return FileSplit(paths, torch.full((len(paths),), -1), 0)


def open_for_calibration(root: Path | None) -> FileSplit:
    """Open images whose labels do not matter: `root/train/`, or images right in `root`.

    Images without class folders have label −1.

    Raises:
        OmpqError: Neither is there (a folder with `val/` only is named as such).
    """
    root = require_folder(root)
    train = root / "train"
    if train.is_dir():
        return open_folder(root, "train") if _list_classes(train) else open_images(train)
    if any(_is_image(entry) for entry in root.iterdir()):
        return open_images(root)
    if (root / "val").is_dir():
        raise OmpqError(
            f"{root} has val/ but no train/; calibration takes training images: add "
            f"{train}/CLASS/*.jpg, or use `dataset` images with any folder of images"
        )
    raise OmpqError(
        f"{root} has no folder train/ and no images (it holds {_describe_contents(root)}); "
        f"expected {train}/CLASS/*.jpg or {root}/*.jpg; `dataset` images takes all images below a "
        "folder"
    )


def find_images(folder: Path) -> list[Path]:
    """Find the image files below `folder` by their suffixes, sorted by path, links followed."""
    walk = os.walk(folder, followlinks=True)
    files = (Path(where, name) for where, _, names in walk for name in names)
    return sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES)


def require_folder(root: Path | None) -> Path:
    """Return `root`, provided that it is a folder.

    Raises:
        OmpqError: `root` is None, does not exist, or is a file.
    """
    if root is None:
        raise OmpqError("this data set needs its folder; give it as `root`")
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise OmpqError(f"data folder {root} {what}")
    return root


def _list_classes(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _describe_contents(folder: Path, most: int = 6) -> str:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more or "nothing"
