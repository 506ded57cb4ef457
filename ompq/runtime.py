"""Where a run happens: device, seed, ranks, progress."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from platform import python_version
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed
from tqdm import tqdm

from ompq.errors import OmpqError
from ompq.script import connect_store, name_in_store

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that `torchrun` started; one of one without it.

    Attributes:
        rank: Number of this process among all, from 0.
        world_size: Number of processes.
        local_rank: Number of this process among those on its machine, from 0.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Tell whether this is the process that prints and writes."""
        return self.rank == 0

    @classmethod
    def from_environment(cls) -> Ranks:
        """Read the ranks that `torchrun` or `torch.distributed.launch` put in the environment."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        values = [os.environ.get(name) for name in names]
        if values[0] is None or values[1] is None:
            return cls()
        return cls(int(values[0]), int(values[1]), int(values[2] or 0))


@contextmanager
def process_group(ranks: Ranks, device: torch.device, backend: str | None = None) -> Iterator[None]:
    """Hold a process group while the body runs, if there are several processes.

    Args:
        ranks: Place of this process among those that share the work.
        device: Device of this process.
        backend: Name of the backend; None for NCCL on CUDA and Gloo on the CPU.

    Raises:
        OmpqError: Another process has ended; the message is that process's, where it had one.
    """
    if ranks.world_size == 1:
        yield
        return
    backend = backend or ("nccl" if device.type == "cuda" else "gloo")
    if device.type == "cuda":
        # NCCL communicates on the current device, which is the first one for every process.
        torch.cuda.set_device(device)
    distributed.init_process_group(backend, timeout=timedelta(minutes=10))
    try:
        with _share_failure():
            yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def _share_failure() -> Iterator[None]:
    """Tell the other ranks of an error; raise theirs in the place of a lost connection."""
    try:
        yield
    except OmpqError as error:
        with suppress(KeyError, ValueError, RuntimeError):
            connect_store().set(name_in_store("failure"), str(error))
        raise
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        told = "another process of this run has ended; what it printed says why"
        with suppress(KeyError, ValueError, RuntimeError):
            told = connect_store().get(name_in_store("failure")).decode()
        raise OmpqError(told) from error


def run_on_main(ranks: Ranks, action: Callable[[], None]) -> None:
    """Run an action on the first rank while the others wait.

    Args:
        ranks: Place of this process among those that share the work.
        action: Function to call.

    Raises:
        OmpqError: The action raised it; every rank does then.
    """
    if ranks.world_size == 1:
        action()
        return
    told: list[str | None] = [None]
    if ranks.is_main:
        try:
            action()
        except OmpqError as error:
            told = [str(error)]
    distributed.broadcast_object_list(told, src=0)
    if told[0] is not None:
        raise OmpqError(told[0])


def gather_values(value: T, ranks: Ranks) -> list[T]:
    """Return what every rank gives, in rank order.

    Args:
        value: Value of this rank, that can be pickled.
        ranks: Place of this process among those that give a value.
    """
    if ranks.world_size == 1:
        return [value]
    values: list[Any] = [None] * ranks.world_size
    distributed.all_gather_object(values, value)
    return values


def gather_rows(value: Tensor, rows: int, ranks: Ranks) -> Tensor:
    """Concatenate the shards of all ranks in rank order along the first dimension.

    Args:
        value: Shard of this rank, n_r × …, of the length that `shard_sizes` gives.
        rows: Number of rows of all shards together.
        ranks: Place of this process among those that hold shards.

    Returns:
        The whole tensor, `rows` × …, on every rank.
    """
    if ranks.world_size == 1:
        return value
    sizes = shard_sizes(rows, ranks.world_size)
    # All ranks must exchange equal shapes, so shorter shards are padded by one row.
    padded = value.new_zeros(max(sizes), *value.shape[1:])
    padded[: value.shape[0]] = value
    pieces = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(pieces, padded)
    return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)])


def shard_sizes(rows: int, world_size: int) -> list[int]:
    """Return the sizes of `world_size` contiguous shards of `rows` rows, the longer ones first.

    >>> shard_sizes(10, 4)
    [3, 3, 2, 2]
    """
    quotient, remainder = divmod(rows, world_size)
    return [quotient + (rank < remainder) for rank in range(world_size)]


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device that a name means on this machine.

    Args:
        name: "auto" (CUDA where there is some), "cpu", "cuda" or "cuda:N".
        local_rank: Number of the CUDA device where `name` has none.

    Raises:
        OmpqError: The name is no device, or CUDA or that device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OmpqError(f"`device` {name}: not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise OmpqError(
            f"`device` {name}: this runs on cpu and cuda; use auto, cpu, cuda or cuda:N"
        )
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise OmpqError(f"`device` {name}: PyTorch sees no CUDA device here; use `device` cpu")
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise OmpqError(f"`device` {name}: device {index} of {count}; start fewer processes")
    return torch.device("cuda", index)


def seed_everything(seed: int) -> None:
    """Seed the global random generators of Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def progress(
    items: Iterable[T], description: str, total: int | None = None, ranks: Ranks | None = None
) -> tqdm[T]:
    """Iterate over items behind a progress bar, on the main rank in a terminal; else silently.

    Args:
        items: Items to iterate over.
        description: Text in front of the bar.
        total: Number of items where `items` has no length.
        ranks: Place of this process; None to read it from the environment.
    """
    visible = (ranks or Ranks.from_environment()).is_main and sys.stderr.isatty()
    return tqdm(items, desc=description, total=total, disable=not visible, leave=False)


def say(text: str) -> None:
    """Print a text at once, into a pipe too."""
    print(text, flush=True)


def versions() -> dict[str, str]:
    """Return the versions of Python and the packages that a result depends on, by name."""
    packages = ("torch", "torchvision", "timm", "numpy", "scipy")
    return {"python": python_version()} | {name: metadata.version(name) for name in packages}
