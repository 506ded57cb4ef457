"""Values of a checkpoint's tensors as a network can take them, or the line that says why not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ompq.errors import OmpqError


def settle_values(state: dict[str, Tensor], own: Mapping[str, Tensor], where: str) -> None:
    """Make the weights of a checkpoint plain, in place; refuse those that a network cannot take.

    Args:
        state: Weights under the network's names.
        own: The network's own tensors by name.
        where: Origin of the weights, for the message.

    Raises:
        OmpqError: A tensor has no values, is complex, or holds integers where the network computes
            with floats; the first such tensor is named.
    """
    for name, tensor in state.items():
        if name not in own:
            continue
        reason = _find_fault(tensor, own[name])
        if reason:
            raise OmpqError(f"{where}: {name} {reason}; give the weights of the float network")
        if tensor.layout is not torch.strided:
            state[name] = tensor.to_dense()


def _find_fault(tensor: Tensor, own: Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_meta:
        return "has a shape and no values (it is on the device meta)"
    if tensor.is_quantized:
        return f"is quantized already ({kind})"
    if tensor.is_complex() and not own.is_complex():
        return f"is complex ({kind})"
    if own.is_floating_point() and not tensor.is_floating_point():
        return f"holds {kind}, and the network computes with {own.dtype}".replace("torch.", "")
    return ""
