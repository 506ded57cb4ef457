"""What a killed run leaves behind, and how the next one goes on from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ompq.errors import OmpqError
from ompq.files import load_tensors, save_tensors, write_json
from ompq.quantizers import QuantParams
from PTQ.results import PartReport, PartResult

_SETTINGS = "settings.json"


class Recovery:
    """The finished parts of a run, one file each, in a folder of its own.

    Args:
        folder: where they are kept; it holds nothing else.
        fingerprint: JSON-ready settings that the parts depend on.
        resume: go on from what is there; else it must hold no finished part.

    Raises:
        OmpqError: `resume` with other settings than before (names them), or finished parts that
            nobody asked to go on from.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any], resume: bool) -> None:
        self._folder = folder
        known = folder / _SETTINGS
        finished = sorted(folder.glob("part-*.safetensors"))
        if resume and known.is_file():
            _compare(json.loads(known.read_text(encoding="utf-8")), fingerprint, folder)
        elif finished:
            raise OmpqError(
                f"{folder.parent} holds an unfinished run ({len(finished)} parts done); add "
                f"--resume to go on with it, give another --output_dir, or delete {folder}"
            )
        write_json(known, fingerprint)

    def load(self, number: int) -> PartResult | None:
        """A finished part; None if it was not finished, or its file is damaged."""
        file = self._file(number)
        if not file.is_file():
            return None
        try:
            tensors, described = load_tensors(file)
            return PartResult(
                PartReport.from_json(described["report"]),
                {name: tensors[f"integers {name}"] for name in described["weights"]},
                _grids("weight", described["weights"], tensors),
                _grids("activation", described["activations"], tensors),
            )
        except (OmpqError, KeyError, TypeError):
            return None

    def save(self, number: int, result: PartResult) -> None:
        """Remember a finished part."""
        tensors = {f"integers {name}": value for name, value in result.integers.items()}
        tensors |= _tensors("weight", result.weights) | _tensors("activation", result.activations)
        described = {
            "report": result.report.to_json(),
            "weights": {name: [g.low, g.high] for name, g in result.weights.items()},
            "activations": {name: [g.low, g.high] for name, g in result.activations.items()},
        }
        save_tensors(self._file(number), tensors, described)

    def _file(self, number: int) -> Path:
        return self._folder / f"part-{number:03d}.safetensors"


def _compare(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        key = changed[0]
        raise OmpqError(
            f"--resume: {folder.parent} was begun with other settings ({', '.join(changed)}; "
            f"{key} was {str(before.get(key))[:60]}, is {str(now.get(key))[:60]}); repeat these or "
            "give another --output_dir"
        )


def _tensors(kind: str, grids: dict[str, QuantParams]) -> dict[str, Tensor]:
    named = {f"{kind} scale {name}": grid.scale for name, grid in grids.items()}
    return named | {f"{kind} zero {name}": grid.zero_point for name, grid in grids.items()}


def _grids(
    kind: str, ranges: dict[str, list[int]], tensors: dict[str, Tensor]
) -> dict[str, QuantParams]:
    return {
        name: QuantParams(tensors[f"{kind} scale {name}"], tensors[f"{kind} zero {name}"], *bounds)
        for name, bounds in ranges.items()
    }
