"""Room for the values between blocks: on the accelerator, in memory, or in a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ompq.errors import OmpqError

# Share of what is free now that one tensor may take before the next place is tried.
_SHARE = 0.4


class ActivationCache:
    """A source of room for float32 tensors of any size, in a chosen place or the best that fits.

    Args:
        place: Place of the tensors: `cuda`, `cpu`, `disk`, or `auto` for the first of these three
            that has enough room.
        device: Device that the network computes on.
        folder: Folder of the files. They have no name once they are open, and so vanish with the
            process.

    Raises:
        OmpqError: `place` is `cuda`, and the network computes elsewhere.
    """

    def __init__(self, place: str, device: torch.device, folder: Path) -> None:
        if place == "cuda" and device.type != "cuda":
            raise OmpqError("`cache_device` cuda needs `device` cuda; use auto, cpu or disk")
        self._place = place
        self._device = device
        self._folder = folder

    def allocate(self, shape: Sequence[int]) -> Tensor:
        """Return an uninitialised float32 tensor.

        Raises:
            OmpqError: The disk is full.
        """
        size = 4 * prod(shape)
        place = self._place if self._place != "auto" else self._choose_place(size)
        if place == "disk":
            return _map_file(self._folder, shape)
        return torch.empty(*shape, device=self._device if place == "cuda" else "cpu")

    def _choose_place(self, size: int) -> str:
        if self._device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._device)
            if size < _SHARE * free:
                return "cuda"
        return "cpu" if size < _SHARE * read_available_memory() else "disk"


def read_available_memory() -> float:
    """Return the bytes of main memory that this process may still take, as far as Linux tells.

    Where the system tells nothing, that is infinity.
    """
    limits = [float("inf")]
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024.0 for line in lines if "MemAvailable" in line]
    # In a container the machine has more memory than the control group lets its processes take.
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text())
        limits.append(float(most - int((group / "memory.current").read_text())))
    return min(limits)


def _map_file(folder: Path, shape: Sequence[int]) -> Tensor:
    size = prod(shape)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".cache-")
        try:
            # A sparse file on a full disk would kill the process at the first write.
            os.posix_fallocate(descriptor, 0, max(1, 4 * size))
            values = torch.from_file(name, shared=True, size=size, dtype=torch.float32)
        finally:
            # The mapping outlives descriptor and name: no file is left behind, even after a kill.
            os.close(descriptor)
            os.unlink(name)
    except OSError as error:
        raise OmpqError(
            f"{folder} has no room for {4 * size / 2**20:.0f} MB of cached activations "
            f"({error.strerror}); free some space, take fewer `num_images` or another `folder`"
        ) from error
    return values.view(*shape)
