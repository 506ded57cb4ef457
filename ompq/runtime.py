"""Where a run happens: device, seed, ranks, progress, and how a script ends."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from platform import python_version
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, distributed
from tqdm import tqdm

from ompq.errors import OmpqError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that `torchrun` started; one of one without it."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    @classmethod
    def from_environment(cls) -> Ranks:
        """Read what `torchrun` and `torch.distributed.launch` put into the environment."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        values = [os.environ.get(name) for name in names]
        if values[0] is None or values[1] is None:
            return cls()
        return cls(int(values[0]), int(values[1]), int(values[2] or 0))


@contextmanager
def process_group(ranks: Ranks, device: torch.device, backend: str | None = None) -> Iterator[None]:
    """Hold a process group (NCCL on CUDA, Gloo on CPU) while the body runs, if there are ranks."""
    if ranks.world_size == 1:
        yield
        return
    backend = backend or ("nccl" if device.type == "cuda" else "gloo")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group(backend, timeout=timedelta(minutes=10))
    try:
        yield
    finally:
        distributed.destroy_process_group()


def gather_rows(value: Tensor, rows: int, ranks: Ranks) -> Tensor:
    """Concatenate every rank's `value` (n_r × …) in rank order along the first dimension.

    Shards differ by at most one row, `rows` being the number of all rows; shorter shards are
    padded for the exchange.

    Returns:
        A tensor of `rows` × …, the same on every rank.
    """
    if ranks.world_size == 1:
        return value
    sizes = shard_sizes(rows, ranks.world_size)
    padded = value.new_zeros(max(sizes), *value.shape[1:])
    padded[: value.shape[0]] = value
    pieces = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(pieces, padded)
    return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)])


def shard_sizes(rows: int, world_size: int) -> list[int]:
    """Sizes of `world_size` contiguous shards of `rows` rows, the longer ones first."""
    quotient, remainder = divmod(rows, world_size)
    return [quotient + (rank < remainder) for rank in range(world_size)]


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `--device` names: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        OmpqError: CUDA is asked for where there is none, or the name is no device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OmpqError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise OmpqError(
            f"--device {name}: this runs on cpu and cuda; use auto, cpu, cuda or cuda:N"
        )
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise OmpqError(f"--device {name}: PyTorch sees no CUDA device here; use --device cpu")
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise OmpqError(f"--device {name}: device {index} of {count}; start fewer processes")
    return torch.device("cuda", index)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def progress(
    items: Iterable[T], description: str, total: int | None = None, ranks: Ranks | None = None
) -> tqdm[T]:
    """`items` behind a progress bar on rank 0 of a terminal; silent everywhere else."""
    visible = (ranks or Ranks.from_environment()).is_main and sys.stderr.isatty()
    return tqdm(items, desc=description, total=total, disable=not visible, leave=False)


def say(text: str) -> None:
    """Print at once, into a pipe too."""
    print(text, flush=True)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("torch", "torchvision", "timm", "numpy", "scipy")
    return {"python": python_version()} | {name: metadata.version(name) for name in packages}


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main` and end the process as users expect.

    Exit status 0 on success, 2 with one `error: …` line for what a user can put right, 130 after
    Ctrl-C. Anything else is a defect of ours and keeps its traceback.
    """
    try:
        main()
    except OmpqError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (`| head`) is gone; without this the interpreter complains again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
