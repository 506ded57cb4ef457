"""Which class has which number: by names of folders, a class file, or the network's own names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ompq.data.datasets.splits import FileSplit, Split
from ompq.errors import OmpqError

CLASS_FILE = "classes.txt"
_MANY = 10


@dataclass(frozen=True)
class ClassList:
    """Names of classes, in the order of their numbers.

    Attributes:
        names: The names.
        other: The names with (or without) empty folders, where there is that question.
        notes: What a user should know of them, one line each.
    """

    names: tuple[str, ...]
    other: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def number_classes(
    folders: Collection[str], filled: Collection[str], notes: tuple[str, ...] = ()
) -> ClassList:
    """Number the classes of a data set in the order of their folders' names.

    Empty folders are no classes, unless they are ten or more, or more than the others: then they
    are no leftovers, but give the others their numbers.

    Args:
        folders: Names of the folders, hidden ones excepted.
        filled: Those that hold images in any split.
        notes: Notes that go with the list.

    >>> number_classes(["a", "b", "c"], {"a", "c"}).names
    ('a', 'c')
    """
    every, known = tuple(sorted(folders)), tuple(sorted(filled))
    if every == known:
        return ClassList(known, notes=notes)
    empty = len(every) - len(known)
    if empty >= _MANY or empty > len(known):
        return ClassList(every, known, notes)
    return ClassList(known, every, notes)


def read_class_file(file: Path, filled: Collection[str]) -> tuple[str, ...]:
    """Read the classes of a file that names them in the order of their numbers, one to a line.

    Args:
        file: Path of the file.
        filled: Names of the folders that hold images.

    Returns:
        The names; none where there is no file, or it names none of these folders and so is about
        something else.

    Raises:
        OmpqError: It names some of these folders and others not, or cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    except OSError as error:
        raise OmpqError(f"{file} cannot be read: {error.strerror}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # A line is a name, or begins with it ("n01440764 tench").
    for names in (lines, [line.split()[0] for line in lines]):
        if names and len(set(names)) == len(names) and set(filled) <= set(names):
            return tuple(names)
    missing = sorted(set(filled) - {word for line in lines for word in (line, line.split()[0])})
    if lines and len(missing) < len(filled):
        what = f"does not name the class {missing[0]}" if missing else "names a class twice"
        raise OmpqError(f"{file} {what}; correct it, or rename the file")
    return ()


def match_classes(
    split: Split, class_names: Sequence[str] = (), num_classes: int | None = None
) -> Split:
    """Give the images of a split the class numbers of a network.

    Args:
        split: Images with labels, or without, which stay as they are.
        class_names: Names of the network's classes, in the order of its outputs, where they are
            known: labels are matched by name.
        num_classes: Number of the network's classes, which tells whether folders without images
            are classes.

    Raises:
        OmpqError: A class folder with images has a name that is none of the network's.

    >>> split = FileSplit((Path("cat/1.png"),), torch.tensor([0]), 1, ("cat",))
    >>> match_classes(split, ["ape", "bee", "cat"]).labels.tolist()
    [2]
    """
    if not split.num_classes or not split.class_names:
        return split
    if class_names:
        return _match_by_name(split, tuple(class_names))
    if not isinstance(split, FileSplit) or num_classes == split.num_classes:
        return split
    if not split.other_names or num_classes != len(split.other_names):
        return split
    return _relabel(split, split.other_names, split.class_names)


def _match_by_name(split: Split, names: tuple[str, ...]) -> Split:
    if split.class_names == names:
        return split
    present = [split.class_names[label] for label in split.labels.unique().tolist()]
    unknown = [name for name in present if name not in names]
    if not unknown:
        return _relabel(split, names)
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    if isinstance(split, FileSplit):
        raise OmpqError(
            f"the images' class {unknown[0]} is none of the network's {len(names)} ({shown}); "
            "rename the folder, or leave it out"
        )
    # A data set that has one order of classes, written otherwise: the order is what it has.
    note = f"the network's classes ({shown}) have other names than the images'; taken in order"
    return replace(split, notes=(*split.notes, note))


def _relabel(split: Split, names: tuple[str, ...], other: tuple[str, ...] = ()) -> Split:
    """Number the classes of a split in the order of `names`, which holds those of all images."""
    numbers = {name: number for number, name in enumerate(names)}
    table = torch.tensor([numbers.get(name, -1) for name in split.class_names])
    labels = table[split.labels]
    if isinstance(split, FileSplit):
        return FileSplit(split.paths, labels, len(names), names, other, split.notes)
    return replace(split, labels=labels, num_classes=len(names), class_names=names)


def describe_classes(split: Split) -> list[str]:
    """Return notes on folders without images, that are classes or are not.

    >>> split = FileSplit((Path("a/1.png"),), torch.tensor([0]), 1, ("a",), ("a", "b"))
    >>> describe_classes(split)
    ['1 folder(s) without images are no classes: b']
    """
    if not isinstance(split, FileSplit) or not split.other_names:
        return []
    left_out = [name for name in split.other_names if name not in split.class_names]
    if left_out:
        return [f"{len(left_out)} folder(s) without images are no classes: {_show(left_out)}"]
    counted = [name for name in split.class_names if name not in split.other_names]
    return [
        f"{len(counted)} of {split.num_classes} class folders hold no images, and count as "
        f"classes: {_show(counted)}"
    ]


def _show(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
