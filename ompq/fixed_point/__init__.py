"""Networks that compute with integers: simulated in training, exact in evaluation."""

from ompq.fixed_point.convert import IntegerNetwork, Scheme, to_integers
from ompq.fixed_point.grids import RangeRule

__all__ = ["IntegerNetwork", "RangeRule", "Scheme", "to_integers"]
