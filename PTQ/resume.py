"""The finished blocks that a killed run leaves behind, from which the next run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ompq.errors import OmpqError
from ompq.files import load_tensors, save_tensors, write_json
from ompq.quantizers import QuantParams
from PTQ.block_result import BlockReport, BlockResult

_SETTINGS = "settings.json"


class FinishedBlocks:
    """The finished blocks of a run, one file each, in a folder of their own.

    Args:
        folder: Folder of the files; it holds nothing else.
        fingerprint: JSON-ready settings that the blocks depend on.
        resume: Whether to go on from what the folder holds; else it must hold no finished block.

    Raises:
        OmpqError: `resume` with other settings than before (names them), or finished blocks that
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
                f"{folder.parent} holds an unfinished run ({len(finished)} blocks done); add "
                f"`resume` to go on with it, give another `folder`, or delete {folder}"
            )
        write_json(known, fingerprint)

    def load(self, number: int) -> BlockResult | None:
        """Return a finished block; None if it was not finished, or its file is damaged."""
        file = self._file(number)
        if not file.is_file():
            return None
        try:
            tensors, described = load_tensors(file)
            return BlockResult(
                BlockReport.from_json(described["report"]),
                {name: tensors[f"integers {name}"] for name in described["weights"]},
                _unpack("weight", described["weights"], tensors),
                _unpack("activation", described["activations"], tensors),
                {name: tensors[f"bias {name}"] for name in described["biases"]},
            )
        except (OmpqError, KeyError, TypeError):
            return None

    def save(self, number: int, result: BlockResult) -> None:
        """Write a finished block."""
        tensors = {f"integers {name}": value for name, value in result.integers.items()}
        tensors |= {f"bias {name}": value for name, value in result.biases.items()}
        tensors |= _pack("weight", result.weights) | _pack("activation", result.activations)
        described = {
            "report": result.report.to_json(),
            "weights": {name: [p.low, p.high] for name, p in result.weights.items()},
            "activations": {name: [p.low, p.high] for name, p in result.activations.items()},
            "biases": list(result.biases),
        }
        save_tensors(self._file(number), tensors, described)

    def _file(self, number: int) -> Path:
        # "part" is what earlier versions call a block; their unfinished runs must stay readable.
        return self._folder / f"part-{number:03d}.safetensors"


def _compare(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    if now.keys() - before.keys():
        raise OmpqError(
            f"`resume`: {folder.parent} was begun by an earlier version, which quantized other "
            "values; give another `folder`"
        )
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        key = changed[0]
        raise OmpqError(
            f"`resume`: {folder.parent} was begun with other settings ({', '.join(changed)}; "
            f"{key} was {str(before.get(key))[:60]}, is {str(now.get(key))[:60]}); repeat these or "
            "give another `folder`"
        )


def _pack(kind: str, params: dict[str, QuantParams]) -> dict[str, Tensor]:
    """Return scales and zero points under the names that they have in the file of a block."""
    named = {f"{kind} scale {name}": p.scale for name, p in params.items()}
    return named | {f"{kind} zero {name}": p.zero_point for name, p in params.items()}


def _unpack(
    kind: str, ranges: dict[str, list[int]], tensors: dict[str, Tensor]
) -> dict[str, QuantParams]:
    return {
        name: QuantParams(tensors[f"{kind} scale {name}"], tensors[f"{kind} zero {name}"], *bounds)
        for name, bounds in ranges.items()
    }
