"""What integer hardware holds of a layer, and of a bias that was written down."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerIntegers:
    """What integer hardware holds of a layer.

    Attributes:
        weight: Weight, int16, its zero point subtracted.
        bias: Bias, int64, at the scale of the sums; None where there is none.
        scale: Scale of the sums, float64, one per output channel, of a shape that broadcasts to
            the output's.
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor

    def bound_sums(self, reach: int) -> Tensor:
        """Return, per output channel, what |sums| cannot exceed for inputs of at most `reach`.

        >>> weight, bias = torch.tensor([[3, -2], [1, 0]]), torch.tensor([5, -7])
        >>> LayerIntegers(weight, bias, scale=torch.ones(2)).bound_sums(10)
        tensor([55, 17])
        """
        largest = self.weight.abs().flatten(1).sum(dim=1) * reach
        return largest if self.bias is None else largest + self.bias.abs()


@dataclass(frozen=True)
class HeldBias:
    """Integers of a bias that were written down, and what they were written down for.

    Attributes:
        whole: Bias, int64, at the scale of the sums.
        bias: Float bias that the integers stand for.
        scale: Scale of the sums, float64, one per output channel.
    """

    whole: Tensor
    bias: Tensor
    scale: Tensor

    def stands_for(self, bias: Tensor, scale: Tensor) -> bool:
        """Tell whether these are the bias and the scale that the integers belong to."""
        return torch.equal(bias.cpu(), self.bias) and torch.equal(scale.cpu(), self.scale)
