"""Which class has which number: by names of folders, a class file, or the network's own names."""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ompq.data.datasets.splits import FileSplit, Split
from ompq.errors import OmpqError

CLASS_FILE = "classes.txt"
_MANY = 10
_NUMBER_LAST = re.compile(r"(?P<name>.+?)[\s,;:=]+(?P<number>\d{1,9})")
_NUMBER_FIRST = re.compile(r"(?P<number>\d{1,9})[\s,;:=]+(?P<name>.+)")


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

    A line may hold a number too (`3 cat` or `cat 3`, counted from 0 or 1): then the numbers are the
    order. Lines that begin with # are comments, unless a folder is called so.

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
        text = decode_text(file.read_bytes()) if file.is_file() else ""
    except OSError as error:
        raise OmpqError(f"{file} cannot be read: {error.strerror}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("#") or line in filled]
    # A line is a name, or a name and its number, or begins with the name ("n01440764 tench").
    for names in (lines, *_sort_by_numbers(lines), [line.split()[0] for line in lines]):
        if names and len(set(names)) == len(names) and set(filled) <= set(names):
            return tuple(names)
    named = {word for line in lines for word in (line, line.split()[0], line.split()[-1])}
    missing = sorted(set(filled) - named)
    if lines and len(missing) < len(filled):
        what = f"does not name the class {missing[0]}" if missing else "names a class twice"
        raise OmpqError(f"{file} {what}; correct it, or rename the file")
    return ()


def decode_text(content: bytes) -> str:
    """Decode a text that any editor wrote: UTF-8 or UTF-16, with or without a byte order mark.

    >>> decode_text("cat".encode("utf-16")), decode_text("cat".encode("utf-8-sig"))
    ('cat', 'cat')
    """
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if marked else "utf-8-sig", errors="replace")


def _sort_by_numbers(lines: Sequence[str]) -> Iterator[list[str]]:
    """Yield the names of lines that hold a name and its number, sorted by these.

    The numbers stand first in every line or last in every line, and are 0 to n - 1 or 1 to n.
    """
    for pattern in (_NUMBER_LAST, _NUMBER_FIRST):
        found = [pattern.fullmatch(line) for line in lines]
        named = {int(match["number"]): match["name"] for match in found if match}
        least = min(named, default=0)
        if least in (0, 1) and sorted(named) == list(range(least, least + len(lines))):
            yield [named[number] for number in sorted(named)]


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
