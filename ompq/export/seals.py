"""Checksums by which an exported file is known again: unchanged, and written by an export.

The test images of a file hold its CRC-32 and are sealed themselves. A network in C has that of its
files in the last line of `test_vectors.h`, which covers what stands above it too.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from ompq.errors import OmpqError
from ompq.export.test_images import SUFFIX, TestImages, find_test_images

VECTORS_FILE = "test_vectors.h"
_C_SUFFIXES = (".c", ".h")
_SEAL = re.compile(
    r"/\* CRC-32: (\S+) ([0-9a-f]{8}), (\S+) ([0-9a-f]{8}), above ([0-9a-f]{8}); "
    r"(\d+) bytes of tables \*/\n"
)


@dataclass(frozen=True)
class ProgramSeal:
    """What the test vectors of a network in C tell of its files.

    Attributes:
        checksums: Name of a file → its CRC-32 as eight hexadecimal digits.
        size: Bytes of the program's tables.
    """

    checksums: dict[str, str]
    size: int


def compute_checksum(content: bytes) -> str:
    """Compute the CRC-32 of bytes as eight hexadecimal digits.

    >>> compute_checksum(b"model")
    'd79572d9'
    """
    return f"{zlib.crc32(content):08x}"


def seal_vectors(vectors: str, source: Path, header: Path, size: int) -> str:
    """Return test vectors with the checksums of a program as their last line.

    Args:
        vectors: Test vectors as C.
        source: `NAME.c`, written already.
        header: `NAME.h`, likewise.
        size: Bytes of the program's tables.
    """
    files = ", ".join(f"{p.name} {compute_checksum(p.read_bytes())}" for p in (source, header))
    above = compute_checksum(vectors.encode())
    return f"{vectors}/* CRC-32: {files}, above {above}; {size} bytes of tables */\n"


def read_program_seal(source: Path) -> ProgramSeal:
    """Read the checksums of a network in C from the test vectors beside it, which they cover.

    Args:
        source: `NAME.c`.

    Raises:
        OmpqError: The test vectors are missing, changed, or of another origin.
    """
    vectors = source.with_name(VECTORS_FILE)
    try:
        text = vectors.read_bytes()
    except OSError as error:
        raise OmpqError(
            f"cannot read {vectors}: {error.strerror}; it is written beside {source.name}"
        ) from error
    above, _, last = text.rstrip(b"\n").rpartition(b"\n")
    found = _SEAL.fullmatch(last.decode(errors="replace") + "\n")
    if found is None or found[5] != compute_checksum(above + b"\n"):
        raise OmpqError(f"{vectors} is damaged, or no export wrote it; export the network again")
    return ProgramSeal({found[1]: found[2], found[3]: found[4]}, int(found[6]))


def check_program(source: Path) -> ProgramSeal:
    """Check that the files of a network in C are as they were written.

    Args:
        source: `NAME.c`, with its header and test vectors beside it.

    Returns:
        What the test vectors tell.

    Raises:
        OmpqError: A file is missing or changed.
    """
    seal = read_program_seal(source)
    for suffix in _C_SUFFIXES:
        _check_content(source.with_suffix(suffix), seal.checksums.get(f"{source.stem}{suffix}"))
    return seal


def check_model(file: Path) -> TestImages:
    """Check that an exported file is the one that the test images beside it were written for.

    Args:
        file: Exported file.

    Returns:
        The test images.

    Raises:
        OmpqError: The test images are missing or damaged, or the file was changed.
    """
    tests = TestImages.load(find_test_images(file))
    _check_content(file, tests.checksum)
    return tests


def is_exported(file: Path) -> bool:
    """Tell whether a file is as an export wrote it."""
    try:
        if file.name.endswith(SUFFIX):
            TestImages.load(file)
        elif file.suffix in _C_SUFFIXES:
            seal = read_program_seal(file)
            if file.name != VECTORS_FILE:
                _check_content(file, seal.checksums.get(file.name))
        else:
            check_model(file)
    except OmpqError:
        return False
    return True


def _check_content(file: Path, checksum: str | None) -> None:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise OmpqError(
            f"cannot read {file}: {error.strerror}; export the network again"
        ) from error
    if compute_checksum(content) != checksum:
        raise OmpqError(
            f"{file} is not what was exported together with the test images beside it: it is "
            "damaged, changed or of another network; export the network again"
        )
