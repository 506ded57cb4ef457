"""Weights that a checkpoint holds as what they are computed from: pruned or normalised ones.

`torch.nn.utils.prune` keeps `weight_orig` and `weight_mask`, weight norm a length and a direction,
spectral norm the weight and its first singular vectors. In a network without such wrappers the
product of them is the weight, exactly as the wrapped network computes it in evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

_PARTS = {
    "mask": (r"(.+)_orig", ("{0}_orig", "{0}_mask")),
    "weight norm": (r"(.+)_v", ("{0}_g", "{0}_v")),
    "spectral norm": (r"(.+)_orig", ("{0}_orig", "{0}_u", "{0}_v")),
    "weight norm by parametrization": (
        r"(.+\.)?parametrizations\.(\w+)\.original1",
        ("{0}parametrizations.{1}.original0", "{0}parametrizations.{1}.original1"),
    ),
    "spectral norm by parametrization": (
        r"(.+\.)?parametrizations\.(\w+)\.original",
        (
            "{0}parametrizations.{1}.original",
            "{0}parametrizations.{1}.0._u",
            "{0}parametrizations.{1}.0._v",
        ),
    ),
}


def compute_weights(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Put the weights of a plain network in the place of what they are computed from.

    Args:
        state: Weights by name, changed in place.
        own: Weights that the network has.

    Returns:
        What was computed, in words; empty where nothing was.
    """
    counts: dict[str, int] = {}
    for kind, (pattern, parts) in _PARTS.items():
        for name in list(state):
            found = re.fullmatch(pattern, name)
            if found is None:
                continue
            pieces = [group or "" for group in found.groups()]
            names = [part.format(*pieces) for part in parts]
            target = "".join(pieces)
            if target in own and target not in state and all(part in state for part in names):
                word = kind.removesuffix(" by parametrization")
                state[target] = _COMPUTATIONS[word](*(state.pop(part) for part in names))
                counts[word] = counts.get(word, 0) + 1
    told = ", ".join(f"{count} by {kind}" for kind, count in counts.items())
    return f"weights computed: {told}" if told else ""


def _scale_direction(length: Tensor, direction: Tensor) -> Tensor:
    """Return a direction of a length, which is 1 along the dimensions that it is taken over."""
    same = length.dim() == direction.dim()
    dims = [dim for dim in range(direction.dim()) if not same or length.shape[dim] == 1]
    if not dims:
        return direction.sign() * length
    return direction * (length / torch.linalg.vector_norm(direction, dim=dims, keepdim=True))


def _divide_by_spectral_norm(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Divide a weight by uᵀWv; W is the weight as a matrix with as many rows as u has entries."""
    fits = (dim for dim in range(weight.dim()) if weight.shape[dim] == u.numel())
    dim = next(fits, 0)
    matrix = weight.movedim(dim, 0).flatten(1)
    return weight / torch.dot(u, matrix @ v)


_COMPUTATIONS: dict[str, Callable[..., Tensor]] = {
    "mask": torch.mul,
    "weight norm": _scale_direction,
    "spectral norm": _divide_by_spectral_norm,
}
