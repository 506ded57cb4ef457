"""Checkpoints of a fine-tuning, and how a killed run goes on from one."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from ompq.errors import OmpqError
from ompq.files import save_state

FORMAT = "ompq-qat-checkpoint/1"


def save_checkpoint(path: Path, state: dict[str, Any], fingerprint: dict[str, Any]) -> None:
    """Write a state, beside and renamed."""
    save_state(path, {"format": FORMAT, "fingerprint": fingerprint, **state})


def load_checkpoint(path: Path, fingerprint: dict[str, Any] | None) -> dict[str, Any]:
    """Read a state; nothing in the file is run.

    Args:
        path: of the file.
        fingerprint: what the run that goes on must have in common; None to accept any.

    Raises:
        OmpqError: missing, damaged, no checkpoint of this script, or of another run.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise OmpqError(f"checkpoint {path} does not exist") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise OmpqError(f"checkpoint {path} is damaged; delete it to start anew") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise OmpqError(f"{path} is no checkpoint of quant_train.py; give weights with --path")
    known: dict[str, Any] = state["fingerprint"]
    if fingerprint is not None and known != fingerprint:
        differing = [key for key in known | fingerprint if known.get(key) != fingerprint.get(key)]
        key = differing[0]
        raise OmpqError(
            f"{path} is of a run with {key} {known.get(key)}, not {fingerprint.get(key)}; give the "
            "same options, or another --save_path"
        )
    return dict(state)


def refuse_unfinished(path: Path) -> None:
    """Keep a run from overwriting the checkpoint of one that has not ended.

    Raises:
        OmpqError: there is such a checkpoint, or a damaged one.
    """
    if not path.is_file():
        return
    state = load_checkpoint(path, None)
    done, total = state["progress"]["step"], state["total_steps"]
    if done < total:
        raise OmpqError(
            f"{path.parent} holds an unfinished run ({done} of {total} steps); add --resume to go "
            f"on with it, give another --save_path, or delete {path}"
        )


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of a fine-tuning (and not weights of another origin).

    Raises:
        OmpqError: there is no such file.
    """
    if not path.is_file():
        raise OmpqError(f"checkpoint {path} does not exist; --resume takes a file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile):
        return False
    return isinstance(state, dict) and state.get("format") == FORMAT
