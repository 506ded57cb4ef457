"""Reading weight files of any origin, without running what is in them."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ompq.errors import OmpqError

SUFFIXES = (".pt", ".pth", ".tar", ".safetensors", ".pkl", ".bin", ".ckpt")
# Where training scripts keep the weights among the rest; the first that is there counts.
CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "state_dict_ema",
    "model_ema",
)
# What parallel training and torch.compile put before every name.
WRAPPERS = ("module.", "_orig_mod.")
_BEST = ("checkpoint/model_best.pth.tar", "model_best.pth.tar")
_DEPTH = 3
_SHOWN = 5
# Training scripts save their arguments and best accuracy too; rebuilding these runs no code.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.float64(0).__reduce__()[0],
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64")),
]


def find_weights(path: str | Path) -> Path:
    """Find the weight file that a path means: the file itself, or the one in the folder.

    In a folder `checkpoint/model_best.pth.tar` comes first, then the only weight file there.

    Args:
        path: Path of a weight file, or of a folder.

    Raises:
        OmpqError: The path does not exist, or the folder holds no weight file or several.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise OmpqError(f"checkpoint {path} does not exist; give `path` a file or its folder")
    for place in _BEST:
        if (path / place).is_file():
            return path / place
    found = _list_weight_files(path) or _list_weight_files(path / "checkpoint")
    if len(found) == 1:
        return found[0]
    if not found:
        raise OmpqError(
            f"{path} holds no weight file ({', '.join(SUFFIXES)}); give `path` the file itself"
        )
    names = ", ".join(file.name for file in found[:_SHOWN]) + (", …" if found[_SHOWN:] else "")
    raise OmpqError(f"{path} holds {len(found)} weight files ({names}); give `path` one of them")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a file that PyTorch or safetensors wrote.

    Containers (`state_dict`, `model`, …) and the `module.` prefix of parallel training are
    removed. Nothing in the file is executed.

    Args:
        path: Path of the file, or of the folder that holds it.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        OmpqError: The file is missing or damaged, or holds pickled code, or holds no tensors.
    """
    file = find_weights(path)
    content = _open_containers(_read(file))
    tensors: dict[str, Tensor] = {}
    if isinstance(content, Mapping):
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        held = ", ".join(map(str, list(content)[:_SHOWN])) if isinstance(content, Mapping) else ""
        raise OmpqError(
            f"{file} holds no weights by name (only {held or type(content).__name__}); "
            "save model.state_dict() and give that file"
        )
    return _unwrap(tensors)


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors with NaN or infinity.

    Args:
        tensors: Tensors by name; those without floats pass.
        where: Origin of the tensors, for the message.

    Raises:
        OmpqError: A tensor is not finite; the first such tensor is named.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            kind = "NaN" if tensor.isnan().any() else "infinity"
            raise OmpqError(f"{where}: {name} holds {kind}; use a sound checkpoint")


def _list_weight_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())


def _read(file: Path) -> Any:
    try:
        if file.suffix.lower() == ".safetensors":
            return load_file(file)
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            # Remarks on how the file was pickled; what matters comes as an error.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise OmpqError(_describe_refusal(file, str(error))) from error
    except PermissionError as error:
        raise OmpqError(f"{file} may not be read; check its permissions") from error
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        KeyError,
        zipfile.BadZipFile,
        SafetensorError,
    ) as error:
        raise OmpqError(_describe_damage(file)) from error


def _describe_refusal(file: Path, reason: str) -> str:
    """Describe why the safe loader stopped: code in the file, or bytes that are no weight file."""
    found = re.search(r"GLOBAL ([\w.]+)", reason) or re.search(r"class ([\w.]+)", reason)
    if found is None:
        return _describe_damage(file)
    return (
        f"{file} holds pickled code ({found[1]}) beside or instead of plain weights, which is "
        "never run; save model.state_dict() and give that file"
    )


def _describe_damage(file: Path) -> str:
    size = file.stat().st_size
    return (
        f"{file} ({size} bytes) is damaged or no weight file that PyTorch or safetensors wrote; "
        "fetch or save it again"
    )


def _open_containers(content: Any) -> Any:
    for _ in range(_DEPTH):
        if not isinstance(content, Mapping):
            return content
        inner = next((content[k] for k in CONTAINERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            return content
        content = inner
    return content


def _unwrap(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # Twice: a network may be compiled and then made parallel, or the other way round.
    for wrapper in WRAPPERS * 2:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    return tensors
