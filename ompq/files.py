"""Writing files so that nothing a user has is ever lost: beside the target first, then renamed."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import platform
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from errno import EWOULDBLOCK
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ompq.errors import OmpqError
from ompq.script import is_main_process

DESCRIPTION = "ompq"
_LOCK = ".ompq-lock"
# For a file without a suffix: torch.save takes no name that begins with its only dot.
_NO_SUFFIX = ".tmp"


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which is renamed to `path` when the body ends well.

    On any failure (a full disk, Ctrl-C, a bug) the temporary file is removed and what stood at
    `path` is untouched. The temporary name ends with the suffix of `path`, since libraries such as
    NumPy and matplotlib choose the format by it.

    Args:
        path: Path of the file to write; folders above it are created.

    Raises:
        OmpqError: The folder cannot be created or written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_orphans(path)
        descriptor, name = tempfile.mkstemp(
            dir=path.parent,
            prefix=f"{_make_prefix(path)}{os.getpid()}-",
            suffix=path.suffix or _NO_SUFFIX,
        )
    except OSError as error:
        raise OmpqError(f"cannot write {path}: {error.strerror}; choose another folder") from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp lets nobody else read; the finished file has the rights of any other.
        os.chmod(temporary, 0o666 & ~_read_umask())
        # Before the renaming: after a power cut a new name must not stand for an empty file.
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or f"{error} (is there room left?)"
        raise OmpqError(f"cannot write {path}: {reason}; what stood there is as it was") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path`, for files that are to be renamed; it is removed at the end.

    What killed processes of this machine left of theirs is removed as well.

    Args:
        path: Path that the folder is named after; the folder above it is there.

    Raises:
        OSError: The folder cannot be created.
    """
    prefix = _make_prefix(path)
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        if _is_orphan(left, prefix):
            shutil.rmtree(left, ignore_errors=True)
    own = f"{prefix}{os.getpid()}-"
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=own) as folder:
        yield Path(folder)


def _make_prefix(path: Path) -> str:
    """Return the beginning of the names of temporaries that this machine writes for `path`."""
    return f".{path.stem}-{platform.node()}-"


def _clear_orphans(path: Path) -> None:
    """Remove the temporaries that killed processes of this machine left beside `path`."""
    prefix = _make_prefix(path)
    suffix = path.suffix or _NO_SUFFIX
    for file in path.parent.glob(f"{glob.escape(prefix)}*{glob.escape(suffix)}"):
        if _is_orphan(file, prefix):
            file.unlink(missing_ok=True)


def _is_orphan(temporary: Path, prefix: str) -> bool:
    """Tell whether the process that a temporary is named after has ended."""
    process = temporary.name.removeprefix(prefix).partition("-")[0]
    return process.isdecimal() and not _is_running(int(process))


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 asks only whether the process is there
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def lock_folder(folder: str | Path, field: str = "output_dir") -> Iterator[None]:
    """Keep other runs out of a folder while the body runs.

    The lock ends with its process, however that ends: a file that a killed run left behind locks
    nothing. Of the processes that torchrun starts, the first one holds the folder for all.

    Args:
        folder: Path of the folder; it is created, with the folders above it.
        field: Name by which the message calls what the user is to change.

    Raises:
        OmpqError: Another run holds the folder (its process is named), or it cannot be written.
    """
    check_writable(folder, field)
    if not is_main_process():
        yield
        return
    file = Path(folder) / _LOCK
    try:
        descriptor = _open_locked(file)
    except BlockingIOError as error:
        holder = error.strerror or "another process"
        raise OmpqError(
            f"{folder} is in use by a run that has not ended ({holder}); wait until it has, or "
            f"give another `{field}`"
        ) from error
    except OSError as error:
        raise OmpqError(
            f"cannot write to {folder}: {error.strerror}; give another `{field}`"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()
        os.close(descriptor)


def _open_locked(file: Path) -> int:
    """Open a lock file that no living process holds, with this process's name in it.

    Raises:
        BlockingIOError: A process holds it; the error's text is what stands in the file.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
            # The process before may have removed the file after it was opened here.
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
                return descriptor
        except FileNotFoundError:
            pass
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock an open file for this process; raise `BlockingIOError` where another one has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(error.errno, os.pread(descriptor, 200, 0).decode()) from error
    except OSError:
        # A file system without locks: what stands in the file has to do.
        text = os.pread(descriptor, 200, 0).decode()
        found = re.fullmatch(rf"process (\d+) on {re.escape(platform.node())}", text)
        if found and int(found[1]) != os.getpid() and _is_running(int(found[1])):
            raise BlockingIOError(EWOULDBLOCK, text) from None


def save_state(path: str | Path, state: Any) -> None:
    """Write a file for `torch.load(…, weights_only=True)`, all of it or nothing.

    Args:
        path: Path of the file.
        state: Tensors and plain values, in dictionaries and lists of any depth.

    Raises:
        OmpqError: The file cannot be written.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # What torch.save makes of whatever stopped its writing: a full disk, Ctrl-C.
            if isinstance(error.__context__, OSError | KeyboardInterrupt):
                raise error.__context__ from None
            raise


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], description: Any) -> None:
    """Write a safetensors file, all of it or nothing.

    Args:
        path: Path of the file.
        tensors: Tensors by name, on any device.
        description: JSON-ready value; the metadata of the file holds it under `DESCRIPTION`.

    Raises:
        OmpqError: The file cannot be written.
    """
    # Copies: the format does not know of tensors that share memory.
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(copies, temporary, metadata={DESCRIPTION: json.dumps(description)})
        except SafetensorError as error:
            found = re.search(r"I/O error: (.+) \(os error (\d+)\)", str(error))
            raise OSError(int(found[2]), found[1]) if found else OSError(str(error)) from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Load a file that `save_tensors` wrote.

    Args:
        path: Path of the file.

    Returns:
        The tensors by name, on the CPU, and the description, None where there is none.

    Raises:
        OmpqError: The file is damaged or missing.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            description = json.loads((opened.metadata() or {}).get(DESCRIPTION, "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise OmpqError(f"{path} is damaged or no safetensors file: {error}") from error
    return tensors, description


def checksum(tensors: Iterable[Tensor]) -> int:
    """Compute a checksum (CRC-32) of the bytes of tensors, on any device, in their order.

    >>> checksum([torch.zeros(2)]) == checksum([torch.zeros(1), torch.zeros(1)])
    True
    """
    found = 0
    for tensor in tensors:
        found = zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes(), found)
    return found


def set_aside(folder: Path, names: Sequence[str]) -> Path | None:
    """Move the files of an earlier run out of the way of a new one, into `folder`/earlier-N.

    Args:
        folder: Folder of the run.
        names: Names of the files that the new run will write; those that exist are moved together.

    Returns:
        The folder where they are now; None if there were none.

    Raises:
        OmpqError: They cannot be moved.
    """
    existing = [folder / name for name in names if (folder / name).exists()]
    if not existing:
        return None
    number = 1
    while (folder / f"earlier-{number}").exists():
        number += 1
    aside = folder / f"earlier-{number}"
    try:
        aside.mkdir()
        for file in existing:
            file.rename(aside / file.name)
    except OSError as error:
        raise OmpqError(
            f"cannot move the earlier result of {folder} into {aside.name}: {error.strerror}; "
            "give another `output_dir`"
        ) from error
    return aside


def check_writable(folder: str | Path, field: str = "output_dir") -> None:
    """Create a folder and try to write to it, so that long work does not fail at its end.

    Args:
        folder: Path of the folder; folders above it are created.
        field: Name by which the message calls what the user is to change.

    Raises:
        OmpqError: The folder cannot be created or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
            file.flush()
    except FileExistsError as error:
        raise OmpqError(f"{folder} is a file; give `{field}` a folder") from error
    except OSError as error:
        raise OmpqError(
            f"cannot write to {folder}: {error.strerror}; give another `{field}`"
        ) from error


def write_text(path: str | Path, text: str) -> None:
    """Write a text as UTF-8, all of it or nothing.

    Args:
        path: Path of the file.
        text: Text to write.

    Raises:
        OmpqError: The file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON in the order of its keys, all of it or nothing.

    Args:
        path: Path of the file.
        value: JSON-ready value, without NaN or infinity.

    Raises:
        OmpqError: The file cannot be written.
        ValueError: The value holds NaN or infinity; nothing is written.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path, field: str) -> Any:
    """Read a JSON file that a person or a program wrote, with or without a byte order mark.

    Args:
        path: Path of the file.
        field: Name by which the message calls what the user is to change.

    Raises:
        OmpqError: The file is missing, cannot be read or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise OmpqError(f"{path} does not exist; check `{field}`") from error
    except OSError as error:
        raise OmpqError(f"{path} cannot be read: {error.strerror}; check `{field}`") from error
    except (ValueError, RecursionError) as error:
        raise OmpqError(f"{path} is no JSON file: {error}; check `{field}`") from error


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _read_umask() -> int:
    mask = os.umask(0)  # there is no other way to read it than to set it
    os.umask(mask)
    return mask
