"""Networks that compute with integers: simulated in training, exact in evaluation."""

from ompq.fixed_point.convert import IntegerNetwork, Scheme, to_integers
from ompq.fixed_point.grids import RangeRule
from ompq.fixed_point.integer import IntegerExecution, export_integers
from ompq.fixed_point.stored import from_tensors, integers_of, to_tensors

__all__ = [
    "IntegerExecution",
    "IntegerNetwork",
    "RangeRule",
    "Scheme",
    "export_integers",
    "from_tensors",
    "integers_of",
    "to_integers",
    "to_tensors",
]
