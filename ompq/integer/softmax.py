"""Softmax on integers: exponentials are looked up, and divided by their sum."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx import GraphModule

from ompq.errors import UNSUITED_ERRORS
from ompq.integer.dyadic import Dyadic
from ompq.integer.operations import IntegerOperation, Trial, agree
from ompq.integer.requantization import ScaleSource

# How finely differences to the largest value are looked up: exponentials are right to 0.4 %.
_STEPS = 128
# Beyond this difference, exponentials of 16 bits are 0.
_REACH = 12
_EXPONENTIAL_BITS = 16
_PROBABILITY_BITS = 15


class IntegerSoftmax(IntegerOperation):
    """A softmax of integers of one scale, of any width up to 31 bits.

    Differences to the largest value, rescaled to steps of 1/128, are looked up in one table of
    e^(−x) of 16 bits; probabilities are integers of 15 bits.

    Args:
        function: The softmax, in float.
        scale_source: Source of the scale of what it reads.
        dim: Dimension along which probabilities sum to 1.
    """

    bits = _PROBABILITY_BITS + 1

    def __init__(self, function: GraphModule, scale_source: ScaleSource, dim: int) -> None:
        super().__init__(function, [scale_source])
        self.dim = dim

    def write_numbers(self) -> dict[str, Tensor]:
        """Compute `table` (int64), `multiplier` and `shift` of differences, and `scale`."""
        (source,) = self.scale_sources
        factor = Dyadic.approximate(source.get_scale().cpu() * _STEPS)
        steps = torch.arange(_REACH * _STEPS, dtype=torch.float64) / _STEPS
        return {
            "table": torch.round(torch.exp(-steps) * 2**_EXPONENTIAL_BITS).long(),
            "multiplier": factor.multiplier,
            "shift": factor.shift,
            "scale": torch.tensor(2.0**-_PROBABILITY_BITS, dtype=torch.float64, device=self.device),
        }

    def compute(self, numbers: Mapping[str, Tensor], *whole: Tensor) -> Tensor:
        """Compute probabilities, rounded to nearest."""
        (x,) = whole
        held = {name: numbers[name].to(x.device) for name in ("table", "multiplier", "shift")}
        below = x.amax(dim=self.dim, keepdim=True) - x
        steps = Dyadic(held["multiplier"].long(), held["shift"].long()).apply(below)
        exponentials = held["table"][steps.clamp_max(len(held["table"]) - 1)]
        total = exponentials.sum(dim=self.dim, keepdim=True)
        return ((exponentials << (_PROBABILITY_BITS + 1)) + total) // (2 * total)


def find_softmax(
    function: GraphModule, shape: tuple[int, ...], images_dim: int | None
) -> int | None:
    """Find, by trying, along which dimension an operation is a softmax; None where it is none.

    Args:
        function: The operation, in float.
        shape: Shape of the value for one image.
        images_dim: Dimension along which the images are; None where that cannot be told.
    """
    trial = Trial.of(function)
    if trial.tensors or images_dim is None:
        return None
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    try:
        found = trial.run(x)
    except UNSUITED_ERRORS:
        return None
    dims = [dim for dim in range(len(shape)) if dim != images_dim and found.shape == x.shape]
    return next((dim for dim in dims if agree(found, torch.softmax(x, dim))), None)
