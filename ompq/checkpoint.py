"""Reading weight files of any origin, without running what is in them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ompq.errors import OmpqError

SUFFIXES = (".pt", ".pth", ".tar", ".safetensors", ".pkl", ".bin", ".ckpt")
_CONTAINERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "net", "ema")
_DEFAULT_PLACE = Path("checkpoint") / "model_best.pth.tar"


def find_weights(path: str | Path) -> Path:
    """The weight file that `path` means: itself, or the one in the folder.

    Raises:
        OmpqError: it does not exist, or the folder holds none or several.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise OmpqError(f"checkpoint {path} does not exist; give --path a file or its folder")
    if (path / _DEFAULT_PLACE).is_file():
        return path / _DEFAULT_PLACE
    places = (path, path / "checkpoint")
    found = [f for p in places if p.is_dir() for f in sorted(p.iterdir()) if f.suffix in SUFFIXES]
    if len(found) == 1:
        return found[0]
    what = ", ".join(file.name for file in found[:5]) if found else "no weight file"
    raise OmpqError(f"{path} holds {what}; give --path the file itself")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Name → tensor of a weight file (PyTorch or safetensors), on the CPU.

    Wrappers (`state_dict`, `model`, …) and the `module.` prefix of parallel training are removed.

    Raises:
        OmpqError: missing, damaged, holding code instead of tensors, or holding NaN or infinity.
    """
    file = find_weights(path)
    content = _unwrap(_read(file))
    if not isinstance(content, Mapping) or not content:
        raise OmpqError(f"{file} holds no state dict (name → tensor); save model.state_dict()")
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise OmpqError(f"{file} holds no tensors; save model.state_dict()")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    check_finite(tensors, str(file))
    return tensors


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        OmpqError: names the first tensor that is not finite.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise OmpqError(f"{where}: {name} holds NaN or infinity; use a sound checkpoint")


def _read(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "unsupported" in str(error).lower():
            raise OmpqError(
                f"{file} is not a plain weight file (it is damaged, or holds Python objects that "
                "would have to be run); save model.state_dict() and give that"
            ) from error
        raise OmpqError(f"{file} is damaged or no weight file; fetch it again") from error
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        KeyError,
        zipfile.BadZipFile,
        SafetensorError,
    ) as error:
        raise OmpqError(f"{file} is damaged or no weight file; fetch it again") from error


def _unwrap(content: Any) -> Any:
    for _ in range(3):
        if not isinstance(content, Mapping):
            return content
        inner = next((content[k] for k in _CONTAINERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            return content
        content = inner
    return content
