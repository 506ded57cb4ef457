"""Writing files so that nothing a user has is ever lost: beside first, then renamed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ompq.errors import OmpqError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed over `path`.

    On any failure (a full disk, Ctrl-C, a bug) the temporary file is removed and what stood at
    `path` is untouched. The temporary name ends with the suffix of `path`, since libraries such as
    NumPy and matplotlib choose the format by it.

    Raises:
        OmpqError: the folder cannot be created or written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix
        )
    except OSError as error:
        raise OmpqError(f"cannot write {path}: {error.strerror}; choose another folder") from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise OmpqError(
            f"cannot write {path}: {error.strerror or error}; what stood there is as it was"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def check_writable(folder: str | Path) -> None:
    """Create a folder and try it, so that long work does not find out at its end.

    Raises:
        OmpqError: it cannot be created or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except FileExistsError as error:
        raise OmpqError(f"{folder} is a file; give --output_dir a folder") from error
    except OSError as error:
        raise OmpqError(
            f"cannot write to {folder}: {error.strerror}; give another folder"
        ) from error


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` (UTF-8), all of it or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON in the order of its keys, all of it or nothing."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
