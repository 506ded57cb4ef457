"""Files of named tensors with a checksum, by which a change of any bit is noticed.

They are safetensors files. Their description, one JSON text without spaces in the metadata, begins
with `checksum`: eight hexadecimal digits, the CRC-32 of all bytes of the file with eight zeros in
their place.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ompq.errors import OmpqError
from ompq.files import DESCRIPTION, atomic_path

CHECKSUM = "checksum"
SUFFIX = ".safetensors"
_ZEROS = b"00000000"
# As it stands in the file: in a text within the header's JSON, its quotation marks escaped.
_BEFORE_CHECKSUM = f'\\"{CHECKSUM}\\":\\"'.encode()
# The file begins with the length of its header, which is JSON.
_LENGTH_BYTES = 8
# What reading a header raises, or tensors of a type that is not known.
_UNREADABLE = (SafetensorError, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True)
class FileContent:
    """Content of a file of tensors, which may have been changed.

    Attributes:
        tensors: Tensors by name, on the CPU.
        description: JSON value; None where there is none.
        header: JSON text that the file begins with.
        content: All bytes of the file.
    """

    tensors: dict[str, Tensor]
    description: Any
    header: bytes
    content: bytes


def save_sealed(
    path: str | Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]
) -> None:
    """Write tensors with a description and a checksum, all of it or nothing.

    Args:
        path: Path of the file.
        tensors: Tensors by name, on any device.
        description: JSON-ready values by name.

    Raises:
        OmpqError: The file cannot be written.
    """
    given = {name: value for name, value in description.items() if name != CHECKSUM}
    text = json.dumps({CHECKSUM: _ZEROS.decode(), **given}, separators=(",", ":"))
    # Copies: the format does not know of tensors that share memory.
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    content = save(copies, {DESCRIPTION: text})
    with atomic_path(path) as temporary:
        temporary.write_bytes(_put_checksum(content, _compute_checksum(content)))


def load_content(path: Path) -> FileContent:
    """Read a file of tensors, with a checksum or without one; it is not verified.

    Args:
        path: Path of the file.

    Raises:
        OmpqError: The file cannot be read, or is no safetensors file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OmpqError(f"cannot read {path}: {error.strerror}") from error
    try:
        tensors = load(content)
        end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
        header = content[_LENGTH_BYTES:end]
        metadata = json.loads(header).get("__metadata__", {})
        description = json.loads(metadata.get(DESCRIPTION, "null"))
    except _UNREADABLE as error:
        if path.suffix != SUFFIX and content[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":
            raise OmpqError(
                f"{path} is no {SUFFIX} file; give the folder of a finished run, or the file of a "
                "quantized network in it"
            ) from error
        reason = str(error).split("\n")[0]
        raise OmpqError(
            f"{path} is damaged: it is no whole safetensors file ({reason}); write it again"
        ) from error
    return FileContent(tensors, description, header, content)


def is_sealed(content: bytes) -> bool:
    """Tell whether the bytes of a file hold their checksum."""
    place = content.find(_BEFORE_CHECKSUM)
    if place < 0:
        return False
    start = place + len(_BEFORE_CHECKSUM)
    return content[start : start + len(_ZEROS)] == _compute_checksum(content)


def _compute_checksum(content: bytes) -> bytes:
    return f"{zlib.crc32(_put_checksum(content, _ZEROS)):08x}".encode()


def _put_checksum(content: bytes, checksum: bytes) -> bytes:
    """Return the bytes of a file with a checksum in the place of theirs."""
    start = content.index(_BEFORE_CHECKSUM) + len(_BEFORE_CHECKSUM)
    return content[:start] + checksum + content[start + len(checksum) :]
