"""Finding weight files of any origin, and the tensors by name in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ompq.errors import OmpqError
from ompq.zoo._unpickle import describe_code, describe_network, read_content

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
# What holds averages of the weights or another network; it comes after what holds the weights.
SECOND_CHOICE = re.compile(r"(^|[._])(ema|swa|avg|averaged?|teacher|target|momentum)([._]|$)")
# Tensors by name that are no weights.
_NO_WEIGHTS = re.compile(r"(^|_)(optim|sched|scaler|grads?(_|$)|exp_avg)", re.IGNORECASE)
# Buffers that training has made, of batch and instance norms.
_STATISTICS = ("running_mean", "running_var")
# What parallel training and torch.compile put before every name.
WRAPPERS = ("module.", "_orig_mod.")
_BEST = ("checkpoint/model_best.pth.tar", "model_best.pth.tar")
_DEPTH = 6
_SHOWN = 5


@dataclass(frozen=True)
class StoredWeights:
    """Tensors by name in a file.

    Attributes:
        place: Keys that lead to them, dots between; empty where they are the file's own content.
        tensors: The tensors by name, on the CPU.
    """

    place: str
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What was read from a weight file.

    Attributes:
        weights: All tensors by name that may be a network's, the most likely ones first.
        unread: Classes in the file whose objects were not rebuilt.
        whole_network: Whether a whole network was among these.
    """

    weights: tuple[StoredWeights, ...]
    unread: tuple[str, ...]
    whole_network: bool = False


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


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read all tensors by name in a file that PyTorch or safetensors wrote; no code is run.

    Args:
        path: Path of the file, or of the folder that holds it.

    Raises:
        OmpqError: The file is missing or damaged, holds pickled code instead of weights, or holds
            no tensors by name.
    """
    file = find_weights(path)
    content = read_content(file)
    found = sorted(_walk(content.value, "", _DEPTH), key=_rank)
    whole = _holds_network(content.value, _DEPTH)
    if not found and content.unread:
        describe = describe_network if whole else describe_code
        raise OmpqError(describe(file, content.unread[0]))
    if not found:
        inner = _open_containers(content.value)
        if isinstance(inner, Mapping) and set(inner) == {"state", "param_groups"}:
            raise OmpqError(
                f"{file} holds the state of an optimizer, not weights; give the file of the network"
            )
        held = ", ".join(map(str, list(inner)[:_SHOWN])) if isinstance(inner, Mapping) else ""
        raise OmpqError(
            f"{file} holds no weights by name (only {held or type(inner).__name__}); "
            "save model.state_dict() and give that file"
        )
    return Checkpoint(tuple(found), content.unread, whole)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a file that PyTorch or safetensors wrote, with no network to compare.

    Containers (`state_dict`, `model`, …) and the `module.` prefix of parallel training are
    removed. Nothing in the file is executed.

    Args:
        path: Path of the file, or of the folder that holds it.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        OmpqError: The file is missing or damaged, or holds pickled code, or holds no tensors.
    """
    tensors = read_checkpoint(path).weights[0].tensors
    # Twice: a network may be compiled and then made parallel, or the other way round.
    for wrapper in WRAPPERS * 2:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    return tensors


def check_finite(module: nn.Module, where: str) -> None:
    """Refuse NaN in a network's tensors, and infinity in what training has made.

    Buffers may be infinite by design: masks of minus infinity, limits that do not bind. Parameters
    and the statistics of norms may not.

    Args:
        module: The network.
        where: Origin of the tensors, for the message.

    Raises:
        OmpqError: A tensor is not finite; the first such tensor is named.
    """
    parameters = dict(module.named_parameters())
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point() or tensor.isfinite().all():
            continue
        trained = name in parameters or name.rpartition(".")[2] in _STATISTICS
        if tensor.isnan().any() or trained:
            kind = "NaN" if tensor.isnan().any() else "infinity"
            raise OmpqError(f"{where}: {name} holds {kind}; use a sound checkpoint")


def _list_weight_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    # Names that begin with a dot are what systems leave beside a file (`._weights.pth`).
    found = (file for file in folder.iterdir() if not file.name.startswith("."))
    return sorted(file for file in found if file.suffix.lower() in SUFFIXES and file.is_file())


def _walk(content: Any, place: str, depth: int) -> Iterator[StoredWeights]:
    """Yield every mapping that holds tensors by name, itself before those inside it."""
    if isinstance(content, list | tuple):
        content = {str(number): part for number, part in enumerate(content)}
        content = {key: part for key, part in content.items() if not isinstance(part, Tensor)}
    if not isinstance(content, Mapping):
        return
    named = ((key, _as_tensor(value)) for key, value in content.items() if isinstance(key, str))
    tensors = {key: tensor for key, tensor in named if tensor is not None}
    if tensors:
        yield StoredWeights(place, tensors)
    for key, value in content.items():
        if depth and isinstance(key, str) and not _NO_WEIGHTS.search(key):
            yield from _walk(value, f"{place}.{key}" if place else key, depth - 1)


def _as_tensor(value: Any) -> Tensor | None:
    """Return a tensor, or an array of numbers as one; None for all else."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.dtype.isnative:
        return torch.from_numpy(value.copy())
    return None


def _holds_network(content: Any, depth: int) -> bool:
    """Tell whether a pickled module is among what was not rebuilt: its attributes were."""
    if not isinstance(content, Mapping):
        return False
    inside = content.values() if depth else ()
    return "_modules" in getattr(content, "__dict__", {}) or any(
        _holds_network(value, depth - 1) for value in inside
    )


def _rank(stored: StoredWeights) -> tuple[object, ...]:
    """Rank stored weights by their keys: the containers of training scripts in their order first.

    A key that is no container ranks behind all that are, an average of the weights behind those.
    """
    keys = stored.place.split(".") if stored.place else []
    ranks = [CONTAINERS.index(k) if k in CONTAINERS else len(CONTAINERS) for k in keys]
    second = any(SECOND_CHOICE.search(key) and key not in CONTAINERS for key in keys)
    # The file's own tensors stand behind a container beside them, before all else.
    return second, ranks or [len(CONTAINERS)]


def _open_containers(content: Any) -> Any:
    """Return the content of the innermost container that training scripts use."""
    for _ in range(_DEPTH):
        if not isinstance(content, Mapping):
            return content
        inner = next((content[k] for k in CONTAINERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            return content
        content = inner
    return content
