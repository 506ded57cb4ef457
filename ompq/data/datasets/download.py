"""Fetching a data set of torchvision, so that a half-finished download is never taken for one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ompq.errors import OmpqError


def find_cache_folder() -> Path:
    """Return the folder for this user's downloads, `$XDG_CACHE_HOME/ompq`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ompq"


def download(dataset: Callable[..., Any], root: Path, folder: str, advice: str) -> Path:
    """Download a data set of torchvision.

    It arrives in a temporary folder and is renamed when complete; of several processes the first
    one wins.

    Args:
        dataset: Class of torchvision, called with a folder and `download=True`.
        root: Folder to download into; it is created where it is missing.
        folder: Name of the folder that torchvision creates for the data set.
        advice: Message of the error where the data set cannot be downloaded.

    Returns:
        The path of `folder` in `root`.

    Raises:
        OmpqError: The data set cannot be downloaded.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Inside `root`, since a folder can be renamed only within one file system.
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary:
            dataset(temporary, download=True)
            if not (root / folder).exists():
                (Path(temporary) / folder).rename(root / folder)
    except (OSError, RuntimeError) as error:
        # Another process may have completed it meanwhile.
        if not (root / folder).is_dir():
            raise OmpqError(advice) from error
    return root / folder
