"""Dyadic numbers: a real factor as an integer and a shift (HAWQ-V3, arXiv:2011.10680, section 3).

A value on one grid becomes one on another by q = floor(a · M / 2^e + 1/2), with integers alone
`(a · M + 2^(e−1)) >> e`. While |a| < 2^31 and M ≤ 2^21, float64 computes the same exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MULTIPLIER_BITS = 21
# Accumulators stay below this, biases included, as on integer hardware.
ACCUMULATOR_LIMIT = 2**31
_LARGEST_SHIFT = 60


@dataclass(frozen=True)
class Dyadic:
    """M / 2^e: `multiplier` and `shift`, int64 of one shape (scalar, or broadcast to channels)."""

    multiplier: Tensor
    shift: Tensor

    @classmethod
    def of(cls, factor: Tensor) -> Dyadic:
        """The closest to `factor` (positive, below 2^20) with `MULTIPLIER_BITS` significant bits.

        Raises:
            ValueError: a factor that is not positive or too large.
        """
        factor = factor.double()
        if not bool(((factor > 0) & (factor < 2 ** (MULTIPLIER_BITS - 1))).all()):
            raise ValueError("a dyadic factor must be positive and below 2^20")
        mantissa, exponent = torch.frexp(factor)
        multiplier = torch.round(mantissa * 2**MULTIPLIER_BITS).long()
        shift = MULTIPLIER_BITS - exponent.long()
        vanishing = shift > _LARGEST_SHIFT
        return cls(multiplier.masked_fill(vanishing, 0), shift.clamp_max(_LARGEST_SHIFT))

    def apply(self, values: Tensor) -> Tensor:
        """Rescale integers: int64 → int64, by multiplication and shift alone."""
        half = torch.ones_like(self.shift) << (self.shift - 1)
        return (values * self.multiplier + half) >> self.shift

    def apply_float(self, values: Tensor) -> Tensor:
        """The same on integers held in float64, to the bit."""
        factor = torch.ldexp(self.multiplier.double(), -self.shift)
        return (values * factor).add_(0.5).floor_()
