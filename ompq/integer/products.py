"""Products of two values: element by element, of matrices, or whatever is linear in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2

import torch
from torch import Tensor
from torch.fx import GraphModule

from ompq.errors import UNSUITED_ERRORS
from ompq.integer.operations import NARROW_BITS, IntegerOperation, Trial, agree
from ompq.integer.requantization import ScaleSource

# Sums of products stay below 31 bits, sign included.
_MOST_PRODUCTS = 2 ** (31 - 2 * NARROW_BITS)
# Values that products are tried on: integers, as they will be read.
_REACH = 2 ** (NARROW_BITS - 1)


class IntegerProduct(IntegerOperation):
    """An operation that is linear in both of two values of at most 8 bits, such as a product.

    Args:
        function: What the network computes, in float.
        scale_sources: Source of the scale of either value.
        count: How many products a result is the sum of at most.
    """

    def __init__(
        self, function: GraphModule, scale_sources: Sequence[ScaleSource], count: int
    ) -> None:
        super().__init__(function, scale_sources)
        self.bits = 2 * NARROW_BITS + int(log2(max(1, 2 * count - 1)))

    def write_numbers(self) -> dict[str, Tensor]:
        """Compute the scale, which is the product of both."""
        first, second = (source.get_scale() for source in self.scale_sources)
        return {"scale": first * second}

    def compute(self, numbers: Mapping[str, Tensor], *whole: Tensor) -> Tensor:
        """Multiply two tensors of integers, and sum products; float64 holds all of them exactly."""
        return torch.round(self.function(*(x.double() for x in whole))).long()


def count_products(function: GraphModule, shapes: Sequence[tuple[int, ...]]) -> int | None:
    """Count, by trying, how many products of two values a result is the sum of.

    Args:
        function: The operation, in float.
        shapes: Shapes of both values for one image.

    Returns:
        The largest number; None where the operation is not linear in both values, adds anything,
        or multiplies by anything else.
    """
    trial = Trial.of(function)
    if trial.tensors:
        return None
    try:
        return _count(trial, shapes)
    except UNSUITED_ERRORS:
        return None


def _count(trial: Trial, shapes: Sequence[tuple[int, ...]]) -> int | None:
    generator = torch.Generator().manual_seed(0)

    def draw(place: int) -> Tensor:
        return torch.randint(-_REACH, _REACH, shapes[place], generator=generator).double()

    (a, other_a), (b, other_b) = ((draw(place), draw(place)) for place in range(2))
    product = trial.run(a, b)
    if not product.is_floating_point():
        return None
    linear = agree(trial.run(a + 3 * other_a, b), product + 3 * trial.run(other_a, b))
    linear = linear and agree(trial.run(a, b - 2 * other_b), product - 2 * trial.run(a, other_b))
    most = float(trial.run(torch.ones(shapes[0]), torch.ones(shapes[1])).abs().max())
    whole = bool((product == product.round()).all())
    # Coefficients other than 1 would show in integers, or in sums beyond what ones give.
    bounded = bool((product.abs() <= most * _REACH**2).all()) and most == round(most)
    return int(most) if linear and whole and bounded and 0 < most <= _MOST_PRODUCTS else None
