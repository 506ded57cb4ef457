"""Networks that compute with integers: simulated in training, exact in evaluation.

convert            a traced network rewritten: layers, requantizers, sums and concatenations
layers             what it is made of then: fake-quantized in training, exact in evaluation
fake_quantizers    scales and zero points from ranges, or learned
batch_norm         batch norm over the batches of all ranks
calibration        the first scales, from images
dyadic             rescaling by an integer and a shift
execution          the integers written down, and run with integer arithmetic alone
serialization      a converted network as named tensors, and back
"""

from ompq.integer.calibration import calibrate, start_learning_steps
from ompq.integer.convert import ConversionSettings, IntegerNetwork, convert_to_integers
from ompq.integer.execution import IntegerExecution, export_integers
from ompq.integer.fake_quantizers import RangeRule
from ompq.integer.serialization import convert_to_tensors, restore_from_tensors, select_integers

__all__ = [
    "ConversionSettings",
    "IntegerExecution",
    "IntegerNetwork",
    "RangeRule",
    "calibrate",
    "convert_to_integers",
    "convert_to_tensors",
    "export_integers",
    "restore_from_tensors",
    "select_integers",
    "start_learning_steps",
]
