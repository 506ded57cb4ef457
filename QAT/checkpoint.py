"""Checkpoints of a fine-tuning, and how a killed run goes on from one."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ompq.errors import OmpqError
from ompq.files import save_state
from ompq.integer.inserted import COMBINATION_PATH, REQUANTIZER_PATH

FORMAT = "ompq-qat-checkpoint/1"
LAST = "checkpoint.pth.tar"
BEST = "model_best.pth.tar"
# Entry of a fingerprint that checkpoints of earlier versions do not have.
WEIGHTS = "weights"
# Entry of those that learn a step size per channel: what of.
LEARNED_STEPS = "learned step sizes"
# What runs did before there was an option for it.
_FORMER_OPTIONS = {"quantize_sums": False, LEARNED_STEPS: "of folded weights"}
_UNREADABLE = (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile)
_REQUANTIZER_PATHS = (f"{REQUANTIZER_PATH}.", f"{COMBINATION_PATH}.")
_FORMER_NAME = re.compile(r"(.+)\.grid\.(minimum|maximum|scale|zero_point)")


def save_checkpoint(path: Path, state: dict[str, Any], fingerprint: dict[str, Any]) -> None:
    """Write a state; a file that is there is replaced once the new one is complete.

    Args:
        path: Path of the file.
        state: State to write, of tensors and plain values.
        fingerprint: What a run that goes on must have in common with this one.
    """
    save_state(path, {"format": FORMAT, "fingerprint": fingerprint, **state})


def load_checkpoint(path: Path, fingerprint: dict[str, Any] | None) -> dict[str, Any]:
    """Read a state; nothing in the file is run.

    Args:
        path: Path of the file.
        fingerprint: What the run that goes on must have in common; None to accept any.

    Returns:
        The state, its tensors on the CPU.

    Raises:
        OmpqError: The file is missing, damaged, no checkpoint of a fine-tuning, or of another run.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise OmpqError(f"checkpoint {path} does not exist") from error
    except _UNREADABLE as error:
        raise OmpqError(f"checkpoint {path} is damaged; delete it to start anew") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise OmpqError(f"{path} is no checkpoint of quant_train.py; give weights as `path`")
    if fingerprint is not None:
        _check_same_run(path, state["fingerprint"], fingerprint)
    return state | {"network": _translate_former_names(state["network"])}


def _check_same_run(path: Path, known: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    known, asked = {**_FORMER_OPTIONS, **known}, {**_FORMER_OPTIONS, **asked}
    begun, given = known.get(WEIGHTS), asked.get(WEIGHTS)
    # The weights themselves count; the file that held them may have been moved.
    if begun and given and begun["checksum"] != given["checksum"]:
        same = " (with other weights in it now)" if begun["path"] == given["path"] else ""
        raise OmpqError(
            f"{path} is of a run that began with the weights of {begun['path']}{same}, not of "
            f"{given['path']}; give these as `path`, or another `folder`"
        )
    for key in {**known, **asked}:
        if key not in (WEIGHTS, LEARNED_STEPS) and known.get(key) != asked.get(key):
            raise OmpqError(
                f"{path} is of a run with {key} {known.get(key)}, not {asked.get(key)}; give the "
                "same options, or another `folder`"
            )
    if known[LEARNED_STEPS] != asked[LEARNED_STEPS]:
        raise OmpqError(
            f"{path} is of an earlier version, whose learned step sizes were "
            f"{known[LEARNED_STEPS]}; give another `folder`"
        )


@dataclass(frozen=True)
class Resumed:
    """What a run goes on from.

    Attributes:
        state: State to go on from.
        best: Best state of that run so far; None where its file is not there any more.
        in_place: Whether the run goes on where it was, with its own files in the folder.
    """

    state: dict[str, Any]
    best: dict[str, Any] | None
    in_place: bool


def read_resumed(file: Path, folder: Path, fingerprint: dict[str, Any] | None) -> Resumed:
    """Read the checkpoint that a run goes on from, and the best state beside it.

    Args:
        file: Path of the checkpoint, under any name.
        folder: Folder that the run writes to.
        fingerprint: What the run must have in common with the one that wrote the checkpoint.

    Raises:
        OmpqError: The checkpoint is missing, damaged or of another run.
    """
    state = load_checkpoint(file, fingerprint)
    last = folder / LAST
    # A checkpoint that was renamed, with nothing in its place, is the run's own all the same.
    in_place = file.samefile(last) if last.exists() else file.parent.samefile(folder)
    try:
        best = load_checkpoint(file.parent / BEST, fingerprint)
    except OmpqError:
        best = None
    # A better one than the checkpoint knows of is that of the evaluation that was interrupted, to
    # which going on comes again; or, beside a copy, one of later steps.
    if best is not None:
        held, reached = best["progress"]["best_top1"], state["progress"]["best_top1"]
        best = best if held == reached or (in_place and held > reached) else None
    return Resumed(state, best, in_place)


def _translate_former_names(network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename what fake quantizers hold in checkpoints from when their attribute was `grid`."""

    def translate(name: str) -> str:
        found = _FORMER_NAME.fullmatch(name)
        if found is None:
            return name
        owner = found[1]
        # The network itself may have a module called grid. Ours is that of a requantizer, or of a
        # quantized layer, which also holds the float layer as `layer`.
        ours = owner.startswith(_REQUANTIZER_PATHS) or f"{owner}.layer.weight" in network
        return f"{owner}.fake_quantizer.{found[2]}" if ours else name

    return {translate(name): value for name, value in network.items()}


def refuse_unfinished(path: Path) -> None:
    """Keep a run from overwriting the checkpoint of one that has not ended.

    Args:
        path: Path of the checkpoint that would be overwritten, whether or not it is there.

    Raises:
        OmpqError: There is such a checkpoint, or a damaged one.
    """
    if not path.is_file():
        return
    state = load_checkpoint(path, None)
    done, total = state["progress"]["step"], state["total_steps"]
    if done < total:
        raise OmpqError(
            f"{path.parent} holds an unfinished run ({done} of {total} steps); add `resume` to go "
            f"on with it, give another `folder`, or delete {path}"
        )


def is_checkpoint(path: Path) -> bool:
    """Tell whether a file is a checkpoint of a fine-tuning, and not weights from elsewhere.

    Args:
        path: Path of the file.

    Raises:
        OmpqError: There is no such file.
    """
    if not path.is_file():
        raise OmpqError(f"checkpoint {path} does not exist; `resume` takes a file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE:
        return False
    return isinstance(state, dict) and state.get("format") == FORMAT
