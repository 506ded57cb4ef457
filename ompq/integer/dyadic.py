"""Dyadic numbers: a real factor as an integer and a shift (HAWQ-V3, arXiv:2011.10680, section 3).

Integers of one scale become integers of another by q = floor(a · M / 2^e + 1/2), with integers
alone `(a · M + 2^(e−1)) >> e`. While |a| < 2^31 and M ≤ 2^21, float64 computes the same exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MULTIPLIER_BITS = 21
# Accumulators stay below this, biases included, as on integer hardware.
ACCUMULATOR_LIMIT = 2**31
_LARGEST_SHIFT = 60
# The largest factor that fits: all the bits of a multiplier, and a shift by one.
LARGEST_FACTOR = 2.0 ** (MULTIPLIER_BITS - 1) * (1 - 2.0**-MULTIPLIER_BITS)


@dataclass(frozen=True)
class Dyadic:
    """A factor M / 2^e.

    Attributes:
        multiplier: M, int64, a scalar or of a shape that broadcasts to channels.
        shift: e, int64, of the multiplier's shape.
    """

    multiplier: Tensor
    shift: Tensor

    @classmethod
    def approximate(cls, factor: Tensor) -> Dyadic:
        """Return the dyadic number closest to a real factor.

        Args:
            factor: Real factors, positive and below 2^20, any shape.

        Returns:
            The closest numbers of `MULTIPLIER_BITS` significant bits; 0 for factors so small that
            no int64 fits a shift for them.

        Raises:
            ValueError: A factor is not positive, or too large.

        >>> Dyadic.approximate(torch.tensor(0.75))
        Dyadic(multiplier=tensor(1572864), shift=tensor(21))
        """
        factor = factor.double()
        if not bool(((factor > 0) & (factor < 2 ** (MULTIPLIER_BITS - 1))).all()):
            raise ValueError("a dyadic factor must be positive and below 2^20")
        mantissa, exponent = torch.frexp(factor)
        # The mantissa lies in [1/2, 1): the multiplier keeps MULTIPLIER_BITS bits of it.
        multiplier = torch.round(mantissa * 2**MULTIPLIER_BITS).long()
        shift = MULTIPLIER_BITS - exponent.long()
        vanishing = shift > _LARGEST_SHIFT
        return cls(multiplier.masked_fill(vanishing, 0), shift.clamp_max(_LARGEST_SHIFT))

    def apply(self, values: Tensor) -> Tensor:
        """Rescale int64 integers to int64, by multiplication and shift alone; halves go up.

        >>> Dyadic.approximate(torch.tensor(0.25)).apply(torch.tensor([7, 6, 5, -6]))
        tensor([ 2,  2,  1, -1])
        """
        half = torch.ones_like(self.shift) << (self.shift - 1)
        return (values * self.multiplier + half) >> self.shift

    def apply_float(self, values: Tensor) -> Tensor:
        """Rescale integers held in float64 to what `apply` gives, to the bit."""
        factor = torch.ldexp(self.multiplier.double(), -self.shift)
        return (values * factor).add_(0.5).floor_()
