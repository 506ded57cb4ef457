"""Images that a stored network is tried on: those of the run that quantized it, where it tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ompq.artifact import Artifact
from ompq.data import make_loader
from ompq.errors import OmpqError

_RESULTS = "results.json"
_LARGEST_BATCH = 64


def find_data(source: Path, root: Path | None) -> tuple[str | None, Path | None]:
    """Find the data set of the run that quantized a network.

    Args:
        source: Folder that the run wrote, or its file.
        root: Folder of the data set; None for that of the run.

    Returns:
        Name of the data set and its folder; no name where the run's results are not there.

    Raises:
        OmpqError: The results cannot be read.
    """
    folder = source if source.is_dir() else source.parent
    if not (folder / _RESULTS).is_file():
        return None, root
    given = read_run(folder)
    held = given.get("data")
    return str(given.get("dataset")), root or (None if held is None else Path(held))


def read_run(folder: Path) -> dict[str, Any]:
    """Read the command line of the run that wrote a folder, by the names of its options' fields.

    Raises:
        OmpqError: The run's results are missing or damaged.
    """
    file = folder / _RESULTS
    try:
        given = json.loads(file.read_text(encoding="utf-8"))["arguments"]
        return {"dataset": given["dataset"], **given}
    except FileNotFoundError as error:
        raise OmpqError(
            f"{file} does not exist; give the output folder of a finished run"
        ) from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise OmpqError(f"{file} cannot be read, or is no result of a run") from error


def read_images(
    dataset: str, root: Path | None, read: Artifact, count: int, workers: int
) -> Tensor:
    """Read the first test images of a data set, normalised as the network takes them.

    Args:
        dataset: Name of the data set.
        root: Its folder; None for its usual place.
        read: Network that gets the images.
        count: Number of images; fewer where there are not so many.
        workers: Threads that decode them.

    Returns:
        Images, float32, n × channels × height × width.

    Raises:
        OmpqError: There are none.
    """
    size = min(count, _LARGEST_BATCH)
    loader = make_loader(dataset, root, "val", read.preprocess, size, workers=workers)
    found: list[Tensor] = []
    for images, _ in loader:
        found.append(images.cpu())
        if sum(map(len, found)) >= count:
            break
    if not found:
        raise OmpqError(f"there are no images in {dataset}")
    return torch.cat(found)[:count]
