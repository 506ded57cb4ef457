"""What was exported put into its place, without loss of what stood there."""

from __future__ import annotations

import os
from pathlib import Path

from ompq.errors import OmpqError

# What file managers leave everywhere.
_LITTER = frozenset((".DS_Store", "Thumbs.db", "desktop.ini"))


def put_into_place(made: Path, place: Path) -> None:
    """Rename what was made to its place; a folder takes that of an earlier one, as a whole.

    An earlier folder ends up beside what was made, in the room that is removed after an export.

    Args:
        made: File or folder, on the file system of its place.
        place: Path that it is to have.

    Raises:
        OmpqError: There stands something that no export has written; nothing was changed.
        OSError: It cannot be renamed; what stood there stands there still.
    """
    if not made.is_dir() or not os.path.lexists(place):
        os.replace(made, place)
        return
    _check_replaceable(made, place)
    earlier = made.with_name(f"{made.name}.earlier")
    place.rename(earlier)
    try:
        made.rename(place)
    finally:
        if not place.exists():
            earlier.rename(place)


def _check_replaceable(made: Path, place: Path) -> None:
    """Refuse to replace what is no folder, or holds other files than an export writes."""
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
