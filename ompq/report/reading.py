"""What a folder holds of a run: the JSON files that the commands wrote."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ompq.cost import BITS_PER_MB
from ompq.errors import OmpqError
from ompq.report.content import read_content

# What a run may have written, and the formats of it that are known here.
_FILES = {
    "bit_config.json": ("ompq-bit-config/1",),
    "results.json": ("ompq-ptq-results/1", "ompq-qat-results/1"),
    "sweep.json": ("ompq-sweep/1",),
    "compare.json": ("ompq-comparison/1",),
    "debug.json": ("ompq-debug/1",),
    "changes.json": ("ompq-changes/1",),
}
_KINDS = {
    "ompq-ptq-results/1": "post-training quantization",
    "ompq-qat-results/1": "quantization-aware training",
}


@dataclass(frozen=True)
class GroupRow:
    """A group of layers that share a width, with all that is known of it.

    Attributes:
        layers: Names of its layers; the first names the group.
        bits: Width of its weights.
        act_bits: Width of what it reads; None where that stays in float, or is not known.
        params: Number of its parameters; None where the run did not tell.
        ops: Operations for one image; None where the run did not tell.
        shapes: Shapes of the layers' weights.
        listed: Whether the bit list has an entry for it.
        sensitivities: Width → what it costs, where that was measured.
    """

    layers: tuple[str, ...]
    bits: int
    act_bits: int | None = None
    params: int | None = None
    ops: int | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    listed: bool = True
    sensitivities: dict[int, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the name of the layer that stands for the group."""
        return self.layers[0]


@dataclass(frozen=True)
class Run:
    """What a folder tells of a run; a file that is not there is None.

    Attributes:
        folder: The folder.
        config: Content of `bit_config.json`.
        results: Content of `results.json`.
        front: Content of `sweep.json`.
        comparison: Content of `compare.json`.
        debug: Content of `debug.json`.
        changes: Content of `changes.json`.
        orthogonality: The L × L matrix of `orthogonality.npy`.
    """

    folder: Path
    config: dict[str, Any] | None = None
    results: dict[str, Any] | None = None
    front: dict[str, Any] | None = None
    comparison: dict[str, Any] | None = None
    debug: dict[str, Any] | None = None
    changes: dict[str, Any] | None = None
    orthogonality: np.ndarray | None = None

    @property
    def main(self) -> dict[str, Any]:
        """Return the content of the file that the folder is about."""
        for content in (self.results, self.config, self.comparison, self.front, self.debug):
            if content is not None:
                return content
        return {}

    @property
    def kind(self) -> str:
        """Return what was done, in words."""
        if self.results is not None:
            return _KINDS[self.results["format"]]
        if self.config is not None:
            return "bit search"
        return "layers beside the float network" if self.comparison is None else "comparison"

    @property
    def model(self) -> str:
        """Return the name of the network as the user gave it."""
        given = self.main.get("model") or self.main.get("arguments", {}).get("model")
        return str(given or self.folder.name)

    @property
    def groups(self) -> list[GroupRow]:
        """Return the groups in execution order; none where the run chose no widths."""
        if self.results is not None:
            found = self.results.get("allocation") or _of_earlier(self.results)
        else:
            found = [] if self.config is None else self.config["groups"]
        costs = {} if self.config is None else _read_sensitivities(self.config)
        return [_read_group(entry, costs) for entry in found]

    def uniform_mb(self) -> dict[int, float]:
        """Return the size of the network at one width for all listed groups, in MB, by width.

        The groups outside of the list keep their widths. Nothing is told where the run did not.
        """
        groups, size_mb = self.groups, self.main.get("model_size_mb")
        if size_mb is None or not groups or any(group.params is None for group in groups):
            return {}
        others = size_mb * BITS_PER_MB - sum((g.params or 0) * g.bits for g in groups if g.listed)
        if others < 0:
            return {}  # sizes of something else
        listed = sum(group.params or 0 for group in groups if group.listed)
        return {width: (others + width * listed) / BITS_PER_MB for width in range(2, 9)}


def read_folder(folder: Path) -> Run:
    """Read all that a folder tells of a run.

    Args:
        folder: Output folder of one of the commands.

    Raises:
        OmpqError: There is no result in it, or a file is damaged or of another format.
    """
    if not folder.is_dir():
        raise OmpqError(f"{folder} is no folder; give the output folder of a finished run")
    held = {name: read_content(folder / name, name, known) for name, known in _FILES.items()}
    if not any(held.values()):
        names = ", ".join(_FILES)
        raise OmpqError(f"{folder} holds no result of a run (none of {names})")
    own, results = held["bit_config.json"], held["results.json"]
    config = None if results is None else _find_config(results)
    return Run(
        folder=folder,
        config=own if config is None else config,
        results=results,
        front=_keep_own(held["sweep.json"], own),
        comparison=held["compare.json"],
        debug=held["debug.json"],
        changes=held["changes.json"],
        orthogonality=_read_matrix(folder / "orthogonality.npy", own),
    )


def _keep_own(front: dict[str, Any] | None, config: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a front, but not one that an earlier search left: its knee has other widths."""
    if front is None or config is None:
        return front
    knees = [point["bits"] for point in front["points"] if point["knee"]]
    return front if not knees or config.get("bits") in (None, *knees) else None


def _read_matrix(file: Path, config: dict[str, Any] | None) -> np.ndarray | None:
    """Read a matrix, but not one that an earlier search left: the last one did not measure any."""
    if not file.is_file() or (config is not None and config.get("estimator") is None):
        return None
    try:
        matrix = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise OmpqError(f"{file} cannot be read; run the search again") from error
    is_square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0
    if not is_square or matrix.dtype.kind != "f" or not np.isfinite(matrix).all():
        raise OmpqError(f"{file} holds no square matrix of numbers; run the search again")
    return np.asarray(matrix, dtype=np.float64)


def _find_config(results: dict[str, Any]) -> dict[str, Any] | None:
    """Read the search that a run took its widths from, if it is still where it was."""
    given = results["arguments"].get("bit_cfg")
    try:
        name = "bit_config.json"
        file = Path(str(given))
        return read_content(file / name if file.is_dir() else file, name, _FILES[name])
    except (OSError, ValueError, OmpqError):
        return None


def _of_earlier(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a run of an earlier version tells of its groups: names and widths."""
    pairs = zip(results.get("groups", []), results.get("bits", []), strict=False)
    return [{"layers": layers, "bits": bits} for layers, bits in pairs]


def _read_sensitivities(config: dict[str, Any]) -> dict[str, dict[int, float]]:
    """Return what each width costs, by the name of every layer."""
    return {
        layer: {int(width): cost for width, cost in entry["prices"].items()}
        for entry in config["groups"]
        if entry.get("prices")
        for layer in entry["layers"]
    }


def _read_group(entry: dict[str, Any], costs: dict[str, dict[int, float]]) -> GroupRow:
    return GroupRow(
        layers=tuple(entry["layers"]),
        bits=entry["bits"],
        act_bits=entry.get("act_bits"),
        params=entry.get("params"),
        ops=entry.get("ops"),
        shapes=tuple(tuple(shape) for shape in entry.get("shapes", ())),
        listed=entry.get("in_list", True),
        sensitivities=costs.get(entry["layers"][0], {}),
    )
