"""What was exported put into its place, without loss of what stood there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ompq.errors import OmpqError
from ompq.export.seals import compute_checksum, is_exported
from ompq.files import write_json

# What file managers leave everywhere.
_LITTER = frozenset((".DS_Store", "Thumbs.db", "desktop.ini"))


def put_all_into_place(room: Path, folder: Path) -> None:
    """Rename all that was made in a room into a folder, if nothing else stands in its places.

    Files are renamed one by one, and those of two exports do not go together. Until the last one
    is in its place, a hidden file therefore tells the checksums of what is put there and of what
    stood there: what a killed export left is known by it, and replaced by the next one.

    Args:
        room: Folder of what was made, on the file system of the other one.
        folder: Folder that it is to be in.

    Raises:
        OmpqError: In one of the places stands something that no export has written, or that was
            changed since; nothing was changed.
        OSError: Something cannot be renamed.
    """
    made = sorted(room.iterdir())
    places = {new: folder / new.name for new in made}
    record = folder / f".{made[0].name}.unfinished"
    left = _read_record(record)
    for new, place in places.items():
        _check_replaceable(new, place, left.get(new.name, ()))
    files = {new.name: [new, place] for new, place in places.items() if new.is_file()}
    if len(files) > 1:
        write_json(record, {name: _list_checksums(pair) for name, pair in files.items()})
    for new, place in places.items():
        _put_into_place(new, place)
    record.unlink(missing_ok=True)


def _read_record(record: Path) -> Mapping[str, list[str]]:
    """Read what an export that was killed wrote down; nothing where none was, or it is damaged."""
    try:
        held = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def _list_checksums(files: list[Path]) -> list[str]:
    """List the checksums of those files that are there."""
    return [compute_checksum(file.read_bytes()) for file in files if file.is_file()]


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


def _check_replaceable(made: Path, place: Path, left: Sequence[str]) -> None:
    """Refuse to replace what no export wrote; `left` are checksums of what a killed one left."""
    if made.is_dir():
        _check_replaceable_folder(made, place)
    elif place.is_dir():
        raise OmpqError(f"{place} is a folder, and a file is to be there; move it away")
    elif os.path.lexists(place) and not (is_exported(place) or _is_left(place, left)):
        raise OmpqError(
            f"{place} is no file that an export wrote, or was changed since; move it away"
        )


def _is_left(place: Path, left: Sequence[str]) -> bool:
    """Tell whether a file is as an export that was killed found it, or as it put it there."""
    return bool(left) and any(checksum in left for checksum in _list_checksums([place]))


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
