"""Files of quantized networks with other content, and checksums that are right all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ompq.packing import unpack
from ompq.sealed_file import load_content, save_sealed

Change = Callable[[dict[str, Tensor], dict[str, Any]], Any]


def change_file(file: Path, change: Change, target: Path | None = None) -> None:
    """Change what a file holds, packed as it is, in place or for another file."""
    found = load_content(file)
    change(found.tensors, found.description)
    save_sealed(target or file, found.tensors, found.description)


def read_plain(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors that a file stands for, and their description."""
    found = load_content(file)
    return unpack(found.tensors, found.description)
