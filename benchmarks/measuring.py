"""Measurement of the seconds and the memory of one call."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def measure_seconds(action: Callable[[], Any], device: torch.device) -> float:
    """Measure the wall-clock seconds of one call, until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure_peak_memory(action: Callable[[], Any], device: torch.device) -> float:
    """Measure the largest growth of memory while an action runs.

    Args:
        action: Function that is called once.
        device: Device that it computes on. On the CPU the process's resident size is sampled.

    Returns:
        MB (2²⁰ bytes); NaN on a CPU where the system does not tell.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return float("nan")
    samples = [resident := int(statm.read_text().split()[1])]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.002):
            samples.append(int(statm.read_text().split()[1]))

    # Native operators release the interpreter's lock, so that the samples go on meanwhile.
    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        action()
    finally:
        done.set()
        sampler.join()
    return (max(samples) - resident) * 4096 / 2**20


def measure_saved_memory(action: Callable[[], Any]) -> float:
    """Measure the MB of tensors that autograd keeps for backward passes while an action runs."""
    # By address of the storage: what several operators save counts once.
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        action()
    return sum(kept.values()) / 2**20
