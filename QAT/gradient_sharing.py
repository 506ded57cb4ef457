"""Gradients averaged over several processes: by PyTorch, or by NVIDIA Apex where asked for."""

from __future__ import annotations

import warnings
from importlib import import_module
from types import ModuleType

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ompq.errors import OmpqError
from ompq.runtime import Ranks


def share_gradients(module: nn.Module, apex: bool) -> nn.Module:
    """Wrap a network so that gradients are averaged over all ranks after every backward pass."""
    if not apex:
        with warnings.catch_warnings():
            # Of a new name for `broadcast_buffers`, which earlier versions do not know.
            warnings.simplefilter("ignore", FutureWarning)
            # Ranges and statistics agree already; `agree_on_buffers` sees to the rest.
            return DistributedDataParallel(module, broadcast_buffers=False)
    return import_apex().DistributedDataParallel(module)


def import_apex() -> ModuleType:
    """Return NVIDIA's `apex.parallel`.

    Raises:
        OmpqError: It is not installed; PyPI's package named apex is another one.
    """
    try:
        parallel = import_module("apex.parallel")
    except ImportError as error:
        raise OmpqError(
            "`apex` needs NVIDIA Apex, built from github.com/NVIDIA/apex (PyPI's apex is another "
            "package); leave `apex` out for PyTorch's own, which gives the same"
        ) from error
    return parallel


@torch.no_grad()
def agree_on_buffers(module: nn.Module, ranks: Ranks) -> None:
    """Give every rank the first one's buffers.

    Ranges and statistics of our own modules agree. Those of a module with code of its own (a batch
    norm that computes otherwise) are of a rank's own images alone.

    Args:
        module: Network that the ranks train together, changed in place.
        ranks: This process among those that train.
    """
    if ranks.world_size == 1:
        return
    for buffer in module.buffers():
        distributed.broadcast(buffer, src=0)
