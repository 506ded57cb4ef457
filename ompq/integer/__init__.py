"""Networks that compute with integers: simulated in training, exact in evaluation.

convert            a traced network rewritten: layers, and by rewrite.py requantizers, sums,
                   concatenations and casts; network.py holds the result
readers            which values layers read, and where they are quantized for whom; sharing.py:
                   which of them once for all
forms              which operations integers have a form of, and how it is run
substitution       which operations between layers get an integer form of their own, found by
                   trying them: pointwise.py (tables and lines), products.py, softmax.py,
                   normalisation.py; operations.py is what these share
layers             what it is made of then: fake-quantized in training, exact in evaluation
fake_quantizers    scales and zero points from ranges, or learned
batch_norm         batch norm over the batches of all ranks
calibration        the first scales, from images
dyadic             rescaling by an integer and a shift
execution          the integers written down, and run
proof              the integers' run beside the simulation; what differs is left in float
serialization      a converted network as named tensors, and back
"""

from ompq.integer.calibration import calibrate, start_learning_steps
from ompq.integer.convert import convert_to_integers
from ompq.integer.execution import IntegerExecution, export_integers
from ompq.integer.fake_quantizers import RangeRule
from ompq.integer.network import ConversionSettings, IntegerNetwork, describe_operations
from ompq.integer.proof import check_integers, prove
from ompq.integer.readers import QuantizedSite
from ompq.integer.serialization import (
    collect_reads,
    convert_to_tensors,
    restore_from_tensors,
    select_integers,
)

__all__ = [
    "ConversionSettings",
    "IntegerExecution",
    "IntegerNetwork",
    "QuantizedSite",
    "RangeRule",
    "calibrate",
    "check_integers",
    "collect_reads",
    "convert_to_integers",
    "convert_to_tensors",
    "describe_operations",
    "export_integers",
    "prove",
    "restore_from_tensors",
    "select_integers",
    "start_learning_steps",
]
