"""Size and BOPs of a network at given widths: the accounting that reproduces the published figures.

A convolution with its batch norm counts weights + 2·C_out parameters, any other layer weights +
bias; one megabyte is 2²⁰ bytes. A convolution does (weights + 5·C_out) operations per output
position, a linear layer (2·in + 1)·out. BOPs = Σ operations · weight bits · activation bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from ompq.graph import Group
from ompq.widths import FLOAT_BITS

BITS_PER_MB = 8 * 2**20


def size_bits(groups: Sequence[Group], bits: Sequence[int]) -> int:
    """Bits that the parameters of `groups` take at one width per group."""
    return sum(group.params * width for group, width in zip(groups, bits, strict=True))


def size_mb(groups: Sequence[Group], bits: Sequence[int]) -> float:
    """Model size in MB (2²⁰ bytes) at one width per group."""
    return size_bits(groups, bits) / BITS_PER_MB


def float_size_mb(groups: Sequence[Group]) -> float:
    """Model size in MB (2²⁰ bytes) of the same parameters in 32-bit floats."""
    return size_mb(groups, [FLOAT_BITS] * len(groups))


def bops(groups: Sequence[Group], bits: Sequence[int], act_bits: Sequence[int]) -> int:
    """Bit operations for one image at one weight and one activation width per group."""
    return sum(g.ops * w * a for g, w, a in zip(groups, bits, act_bits, strict=True))
