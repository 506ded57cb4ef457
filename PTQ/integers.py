"""The network of integers that a reconstruction prepares, and what it becomes at the end."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ompq.adoption import adopt
from ompq.assignment import Assignment
from ompq.evaluation import find_device
from ompq.graph import NetworkGraph
from ompq.integer import (
    ConversionSettings,
    IntegerNetwork,
    RangeRule,
    calibrate,
    check_integers,
    convert_to_integers,
    prove,
)
from ompq.quantized import QuantizedNetwork
from PTQ.settings import Settings

# Images that tell the ranges of sums, and those that integers are first tried on.
_CALIBRATION_BATCH = 64
_TRIED_IMAGES = 16


def prepare_integers(
    folded: NetworkGraph,
    assignment: Assignment,
    images: Tensor,
    settings: Settings,
    say: Callable[[str], None],
) -> IntegerNetwork:
    """Convert a float network to integers, to know where its values will be quantized.

    Args:
        folded: Float network, batch norm folded.
        assignment: Widths of its groups.
        images: Calibration images, n × channels × height × width, normalised.
        settings: Settings of the reconstruction.
        say: Function that is told what had to be left in float.
    """
    widths = assignment.layer_bits(), assignment.layer_act_bits()
    # Sums are to hold whatever the images showed.
    rule = RangeRule(act_range_momentum=-1)
    chosen = ConversionSettings(rule=rule, quantize_sums=settings.quantize_sums)

    def convert(left_in_float: frozenset[str]) -> IntegerNetwork:
        return convert_to_integers(folded, *widths, chosen, left_in_float)

    def start(converted: IntegerNetwork) -> None:
        calibrate(converted, [images[:_TRIED_IMAGES]], find_device(converted.module))

    converted = prove(convert, start, folded, images)
    for note in converted.notes:
        say(note)
    return converted


def finish_integers(prepared: IntegerNetwork, network: QuantizedNetwork, images: Tensor) -> None:
    """Give the prepared integers what the reconstruction found; they become the network's.

    Args:
        prepared: What `prepare_integers` returned; changed in place.
        network: Reconstructed network, with quantized activations.
        images: Calibration images, which tell the ranges of sums.
    """
    for requantizer in prepared.requantizers().values():
        requantizer.fake_quantizer.reset()
    adopt(prepared, network)
    calibrate(prepared, images.split(_CALIBRATION_BATCH), find_device(prepared.module))
    prepared.float_operations |= check_integers(prepared)
    network.integers = prepared
