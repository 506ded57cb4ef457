"""Folders of image files: `train/` and `val/` with a folder per class, or just images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch

from ompq.data.datasets.classes import CLASS_FILE, ClassList, number_classes, read_class_file
from ompq.data.datasets.splits import FileSplit
from ompq.drawn import is_drawn_here
from ompq.errors import OmpqError

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .ppm .pgm .pbm .pnm .bmp .tif .tiff .webp .gif .jp2 .avif".split()
)
# Pictures in formats that are not read; a data set whose files are such must not seem empty.
_FOREIGN_SUFFIXES = frozenset(
    """.heic .heif .jxl .npy .npz .mat .dcm .nii .exr .hdr .pfm .svg .psd .raw .dng .cr2 .nef .arw
    .tga .eps .ico .pcx .mp4 .avi""".split()
)
# What systems and programs leave in folders, beside names that begin with a dot.
_LEFT_BEHIND = frozenset(
    ("__MACOSX", "__pycache__", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
)
SPLITS = ("train", "val")
# Our pictures never lie alone: beside each is a file with one of these suffixes.
_RESULT_SUFFIXES = (".json", ".safetensors")


@dataclass
class _Walk:
    """Images below a folder, and what was left out on the way.

    Attributes:
        root: Folder that names are told relative to.
        hidden: Hidden folders and image files that were met.
        ours: Pictures that this toolkit has drawn.
        foreign: Pictures in formats that are not read.
        loops: Links to a folder that they lie in.
    """

    root: Path
    hidden: list[str] = field(default_factory=list)
    ours: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)

    def find_images(self, folder: Path) -> Iterator[Path]:
        """Find the image files below `folder` by their suffixes, links followed."""
        for where, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
            self._leave_out_hidden(Path(where), folders)
            self._leave_out_loops(Path(where), folders)
            foreign = [name for name in names if Path(name).suffix.lower() in _FOREIGN_SUFFIXES]
            self.foreign += [self._name(Path(where, name)) for name in sorted(foreign)]
            images = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
            self._leave_out_hidden(Path(where), images)
            drawn = _find_drawn(Path(where), images, names)
            self.ours += [self._name(Path(where, name)) for name in sorted(drawn)]
            yield from (Path(where, name) for name in images if name not in drawn)

    def list_folders(self, folder: Path) -> list[str]:
        """List the names of the folders in `folder` that are not hidden, sorted."""
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        self._leave_out_hidden(folder, names)
        return names

    def _leave_out_hidden(self, where: Path, names: list[str]) -> None:
        """Take hidden names out of a list, in place, as `os.walk` wants it."""
        hidden = [self._name(where / name) for name in names if is_hidden(name)]
        self.hidden += [name for name in hidden if name not in self.hidden]
        names[:] = [name for name in names if not is_hidden(name)]

    def _leave_out_loops(self, where: Path, names: list[str]) -> None:
        """Take links to a folder above out of a list, in place: they would be followed for ever."""
        here = where.resolve()
        loops = [n for n in names if (where / n).is_symlink() and _lies_in(here, where / n)]
        self.loops += [self._name(where / name) for name in loops]
        names[:] = [name for name in names if name not in loops]

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def notes(self) -> tuple[str, ...]:
        """Return what was left out, one line for each reason."""
        kinds = {
            "hidden, and so neither images nor classes": self.hidden,
            "left out, since this toolkit has drawn it": self.ours,
            "left out, since this format is not read; convert it to PNG": self.foreign,
            "not followed, since these links lead to a folder that they lie in": self.loops,
        }
        return tuple(f"{why}: {_shorten(names)}" for why, names in kinds.items() if names)


def is_hidden(name: str) -> bool:
    """Tell whether files and folders of this name are what programs leave behind, not a user's.

    >>> is_hidden(".ipynb_checkpoints"), is_hidden("__MACOSX"), is_hidden("cats")
    (True, True, False)
    """
    return name.startswith(".") or name in _LEFT_BEHIND


def _lies_in(folder: Path, link: Path) -> bool:
    """Tell whether a folder (resolved) is the one that a link leads to, or lies in it."""
    try:
        return folder.is_relative_to(link.resolve())
    except (OSError, RuntimeError):  # a link that leads to itself
        return True


def _refuse(error: OSError) -> None:
    raise OmpqError(f"{error.filename} cannot be read: {error.strerror}") from error


def _find_drawn(where: Path, images: Sequence[str], names: Sequence[str]) -> set[str]:
    """Find the pictures of a folder that are results of ours, as only they lie beside others."""
    if not any(name.endswith(_RESULT_SUFFIXES) for name in names):
        return set()
    return {name for name in images if is_drawn_here(where / name)}


def open_folder(root: Path | None, split: str) -> FileSplit:
    """Open `root/SPLIT/CLASS/…/*.jpg`.

    Where there are two splits, `train/` numbers the classes for `val/` too, so that a validation
    folder with fewer classes keeps the right labels; `root/classes.txt` may number them instead.
    Hidden folders are no classes; `number_classes` tells which of those without images are.

    Args:
        root: Folder of the data set.
        split: "train" or "val", the name of the folder in `root`.

    Raises:
        OmpqError: A folder is missing or holds no images (what it holds is named), or `val/` has
            images of a class that `train/` has not.
    """
    root = require_folder(root)
    folder = root / split
    if not folder.is_dir():
        raise OmpqError(
            f"{root} has no folder {split}/ (it holds {_describe_contents(root)}); expected "
            f"{root / 'train'}/CLASS/*.jpg and {root / 'val'}/CLASS/*.jpg"
        )
    walk = _Walk(root)
    names = walk.list_folders(folder)
    images = {name: sorted(walk.find_images(folder / name)) for name in names}
    if not any(images.values()):
        raise OmpqError(
            f"{folder} holds no images in class folders (it holds {_describe_contents(folder)}); "
            f"expected {folder}/CLASS/*.jpg"
        )
    classes = _list_classes(walk, folder, {name for name in names if images[name]})
    found = [
        (path, label) for label, name in enumerate(classes.names) for path in images.get(name, [])
    ]
    paths, labels = zip(*found, strict=True)
    return FileSplit(
        paths,
        torch.tensor(labels),
        len(classes.names),
        class_names=classes.names,
        other_names=classes.other,
        notes=(*walk.notes(), *classes.notes, *_note_strangers(folder, images, classes)),
    )


def _note_strangers(
    folder: Path, images: Mapping[str, Sequence[Path]], classes: ClassList
) -> list[str]:
    """Note empty folders that no class is called after."""
    known = {*classes.names, *classes.other}
    names = [f"{folder.name}/{name}" for name in images if name not in known]
    return [f"without images, and so no classes: {_shorten(names)}"] if names else []


def _list_classes(walk: _Walk, folder: Path, filled: set[str]) -> ClassList:
    """List the classes by a class file, else the folders of `train/`, else those of `folder`.

    Args:
        walk: Walk through the data set.
        folder: Folder of the split.
        filled: Names of the folders in it that hold images.
    """
    train, file = walk.root / "train", walk.root / CLASS_FILE
    names = walk.list_folders(train) if train.is_dir() else []
    # Images right in `train/`, without classes, number nothing.
    base = train if names else folder
    names = names or walk.list_folders(folder)
    # Every split gives the answer that the others give, and so looks at all of them.
    inside = filled.union(*(_list_filled(walk.root, walk.root / split) for split in SPLITS))
    named = read_class_file(file, inside)
    if named:
        return ClassList(named)
    unknown = sorted(filled - set(names))
    if unknown:
        raise OmpqError(
            f"{folder} has the class {unknown[0]}, which {base} has not; "
            "give both splits the same class folders"
        )
    notes = [f"{file} names none of the class folders; not used"] if file.is_file() else []
    return number_classes(names, inside & set(names), (*notes, *_note_order(names, file)))


def _note_order(names: Sequence[str], file: Path) -> list[str]:
    """Note that folders called by numbers are in the order of letters, where that is another."""
    if not all(name.isdecimal() for name in names) or sorted(names, key=int) == sorted(names):
        return []
    first, second = next((a, b) for a, b in pairwise(sorted(names)) if int(a) > int(b))
    return [
        "class folders are numbered in the order of letters, as torchvision does it: "
        f"{first} comes before {second}; if the network has another order, write it into {file}"
    ]


def _list_filled(root: Path, folder: Path) -> set[str]:
    """List the folders in `folder` that hold images; none where it does not exist."""
    if not folder.is_dir():
        return set()
    walk = _Walk(root)  # what is left out is told by the split that is opened
    return {name for name in walk.list_folders(folder) if any(walk.find_images(folder / name))}


def open_images(root: Path | None, split: str = "") -> FileSplit:
    """Open every image below a folder, without labels.

    Args:
        root: Folder of the images.
        split: Not used; every split is all the images.

    Raises:
        OmpqError: There is no such folder, or no image in it.
    """
    root = require_folder(root)
    walk = _Walk(root)
    paths = tuple(sorted(walk.find_images(root)))
    if not paths:
        raise OmpqError(
            f"{root} holds no images (it holds {_describe_contents(root)}); expected *.jpg, …"
        )
    return FileSplit(paths, torch.full((len(paths),), -1), 0, notes=walk.notes())


def open_for_calibration(root: Path | None) -> FileSplit:
    """Open images whose labels do not matter: `root/train/`, or images right in `root`.

    Images without class folders have label −1.

    Raises:
        OmpqError: Neither is there (a folder with `val/` only is named as such).
    """
    root = require_folder(root)
    train = root / "train"
    if train.is_dir():
        walk = _Walk(root)
        folders = walk.list_folders(train)
        in_classes = any(any(walk.find_images(train / name)) for name in folders)
        loose = any(_is_image(entry) for entry in train.iterdir())
        if in_classes or (folders and not loose):
            return open_folder(root, "train")
        return open_images(train)
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
    """Find the image files below `folder`, sorted by path, links followed.

    They are told by their suffixes; hidden ones and pictures of ours are left out.
    """
    return sorted(_Walk(folder).find_images(folder))


def require_folder(root: Path | None) -> Path:
    """Return `root`, provided that it is a folder.

    Raises:
        OmpqError: `root` is None, does not exist, or is a file.
    """
    if root is None:
        raise OmpqError("this data set needs its folder; give it as `root`")
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise OmpqError(f"data folder {root} {what}; check `root`")
    return root


def _is_image(path: Path) -> bool:
    if path.suffix.lower() not in IMAGE_SUFFIXES or is_hidden(path.name):
        return False
    return path.is_file() and not is_drawn_here(path)


def _describe_contents(folder: Path) -> str:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    return _shorten(names, 6) or "nothing"


def _shorten(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
