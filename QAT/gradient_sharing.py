"""Gradients averaged over several processes: by PyTorch, or by NVIDIA Apex where asked for."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ompq.errors import OmpqError


def share_gradients(module: nn.Module, apex: bool) -> nn.Module:
    """Wrap a network so that gradients are averaged over all ranks after every backward pass."""
    if not apex:
        # Buffers agree already: ranges and statistics are those of all ranks.
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
