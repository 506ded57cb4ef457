"""Size and BOPs of a network at given widths: the accounting that reproduces the published figures.

A convolution with its batch norm counts weights + 2·C_out parameters, any other layer weights +
bias; what is in no quantized layer counts with 32 bits; one megabyte is 2²⁰ bytes. A convolution
does (weights + 5·C_out) operations per output position, a linear layer (2·in + 1)·out.
BOPs = Σ operations · weight bits · activation bits; products of two values, those of attention,
read the activation bits of the layer that they lead to on either side, but for probabilities, which
keep 8 bits, and do two operations per product of two numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from ompq.errors import OmpqError
from ompq.graph import Group

BITS_PER_MB = 8 * 2**20
FLOAT_BITS = 32
# Images are integers already.
PIXEL_BITS = 8
# Most of a softmax's probabilities are small: fewer bits would make them 0.
PROBABILITY_BITS = 8
# The sum of two branches needs more bits than either of them.
SUM_BITS = 16


def size_bits(groups: Sequence[Group], bits: Sequence[int]) -> int:
    """Return the bits that a network's parameters take at one width per group, 32 for the rest."""
    in_groups = sum(group.params * width for group, width in zip(groups, bits, strict=True))
    return in_groups + FLOAT_BITS * sum(group.float_params for group in groups)


def size_mb(groups: Sequence[Group], bits: Sequence[int]) -> float:
    """Return the model size in MB (2²⁰ bytes) at one width per group."""
    return size_bits(groups, bits) / BITS_PER_MB


def float_size_mb(groups: Sequence[Group]) -> float:
    """Return the model size in MB (2²⁰ bytes) with all parameters in 32-bit floats."""
    folded = sum(group.folded_params for group in groups)
    return size_mb(groups, [FLOAT_BITS] * len(groups)) + FLOAT_BITS * folded / BITS_PER_MB


def bops(groups: Sequence[Group], bits: Sequence[int], act_bits: Sequence[int]) -> int:
    """Return the bit operations for one image at one weight and activation width per group."""
    return sum(group_bops(g, w, a) for g, w, a in zip(groups, bits, act_bits, strict=True))


def group_bops(group: Group, bits: int, act_bits: int) -> int:
    """Return a group's share of `bops`."""
    of_probabilities = group.probability_ops * max(act_bits, PROBABILITY_BITS)
    of_others = (group.product_ops - group.probability_ops) * act_bits
    return (group.ops * bits + of_probabilities + of_others) * act_bits


def check_widths(bits: Sequence[object], where: str, lowest: int = 2, highest: int = 8) -> None:
    """Refuse anything but whole numbers of bits that the quantizers know.

    Args:
        bits: Widths to check, of any type.
        where: Name of what holds the widths, for the message.
        lowest: Smallest width that is accepted.
        highest: Largest width that is accepted.

    Raises:
        OmpqError: a width is no integer from `lowest` to `highest`; the message names the first.

    >>> check_widths([4, 16], "bit list")
    Traceback (most recent call last):
    ompq.errors.OmpqError: bit list: entry 2 is 16; bit widths are whole numbers from 2 to 8
    """
    for position, width in enumerate(bits):
        # The exact type: True is an int to isinstance, and no width.
        if type(width) is not int or not lowest <= width <= highest:
            entry = f"{where}: entry {position + 1}" if len(bits) > 1 else where
            raise OmpqError(
                f"{entry} is {width!r}; bit widths are whole numbers from {lowest} to {highest}"
            )
