"""Fetching a data set of torchvision, so that a half-finished download is never taken for one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ompq.errors import OmpqError


def cache_folder() -> Path:
    """Where downloads of this user go (`$XDG_CACHE_HOME/ompq`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ompq"


def download(dataset: Callable[..., Any], root: Path, folder: str, advice: str) -> Path:
    """Let torchvision's `dataset` download into `root`, and give its `folder` there.

    It arrives in a temporary folder and is renamed when complete; of several processes the first
    one wins.

    Raises:
        OmpqError: `advice`, where it cannot be downloaded.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary:
            dataset(temporary, download=True)
            if not (root / folder).exists():
                (Path(temporary) / folder).rename(root / folder)
    except (OSError, RuntimeError) as error:
        if not (root / folder).is_dir():
            raise OmpqError(advice) from error
    return root / folder
