"""What was exported put into its place, without loss of what stood there."""

from __future__ import annotations

import os
from pathlib import Path

from ompq.errors import OmpqError
from ompq.export.seals import is_exported

# What file managers leave everywhere.
_LITTER = frozenset((".DS_Store", "Thumbs.db", "desktop.ini"))


def put_all_into_place(room: Path, folder: Path) -> None:
    """Rename all that was made in a room into a folder, if nothing else stands in its places.

    Args:
        room: Folder of what was made, on the file system of the other one.
        folder: Folder that it is to be in.

    Raises:
        OmpqError: In one of the places stands something that no export has written, or that was
            changed since; nothing was changed.
        OSError: Something cannot be renamed.
    """
    made = sorted(room.iterdir())
    for new in made:
        _check_replaceable(new, folder / new.name)
    for new in made:
        _put_into_place(new, folder / new.name)


def _put_into_place(made: Path, place: Path) -> None:
    """Rename what was made to its place; an earlier folder ends up in the room."""
    if not made.is_dir() or not os.path.lexists(place):
        os.replace(made, place)
        return
    earlier = made.with_name(f"{made.name}.earlier")
    place.rename(earlier)
    try:
        made.rename(place)
    finally:
        if not place.exists():
            earlier.rename(place)


def _check_replaceable(made: Path, place: Path) -> None:
    """Refuse to replace what no export wrote."""
    if made.is_dir():
        _check_replaceable_folder(made, place)
    elif place.is_dir():
        raise OmpqError(f"{place} is a folder, and a file is to be there; move it away")
    elif os.path.lexists(place) and not is_exported(place):
        raise OmpqError(
            f"{place} is no file that an export wrote, or was changed since; move it away"
        )


def _check_replaceable_folder(made: Path, place: Path) -> None:
    """Refuse to replace what is no folder, or holds other files than an export writes."""
    if not os.path.lexists(place):
        return
    if place.is_symlink() or not place.is_dir():
        raise OmpqError(f"{place} is no folder, and one is to be there; move it away")
    expected, found = _list_files(made), _list_files(place) - _LITTER
    if found and found != expected:
        other = min(found ^ expected)
        has = "holds" if other in found else "lacks"
        raise OmpqError(
            f"{place} is no folder that this export wrote: it {has} {other}; move it away"
        )


def _list_files(folder: Path) -> frozenset[str]:
    return frozenset(str(path.relative_to(folder)) for path in folder.rglob("*"))
