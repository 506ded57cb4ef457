"""The least scale of a weight with which a layer's biases and sums fit into their integers.

A bias is an integer at the scale of the sums, that of the input times that of the weight: where a
channel's weights are small (pruned filters), a bias that is not would not fit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ompq.integer.fake_quantizers import ActivationFakeQuantizer
from ompq.quantizers import QuantParams

FULL_BIAS_BITS = 32
# Integers of a bias, and sums of products, stay below this, so that both together fit into 32 bits.
_LARGEST_PART = 2**30
# Scales are float32: a bias's integer may exceed what its scale was chosen for by this share.
_SCALE_ERROR = 2**-20
_LARGEST_SCALE = 1e30


def largest_bias(bias_bits: int) -> int:
    """Return the largest integer of a bias.

    >>> largest_bias(8)
    127
    """
    return 2 ** (bias_bits - 1) - 1


def find_least_scale(
    weight: Tensor,
    params: QuantParams,
    source: ActivationFakeQuantizer,
    bias: Tensor | None,
    bias_bits: int,
) -> Tensor:
    """Find the least scale per channel with which biases and sums fit.

    A bias of 32 bits always gets the scale that it needs. A narrower one is clamped rather than the
    weights given up, unless these are so small that it would cost more.

    Args:
        weight: Weight, channels × ….
        params: Scale that the weight would have, and the range of its integers.
        source: Fake quantizer of the layer's input.
        bias: Bias, in the units of the weight's channels; None where it has no integers.
        bias_bits: Width of its integers.

    Returns:
        Scales, one per channel, of the type of the given one; 0 where any will do.
    """
    rows = weight.detach().flatten(1)
    reach = source.high - source.low
    least = rows.new_zeros(rows.shape[0], dtype=torch.float64)
    # The most that the integers' magnitudes can add up to: mostly there is no need to look.
    if rows.shape[1] * (params.high - params.low) * reach >= _LARGEST_PART:
        # Rounding may add half a step to every weight.
        room = max(_LARGEST_PART - rows.shape[1] * reach / 2, _LARGEST_PART / 4)
        least = rows.abs().sum(dim=1).double() * (reach / room)
    if bias is not None:
        size, step = bias.detach().double().abs(), source.get_scale().double()
        if bias_bits == FULL_BIAS_BITS:
            needed = size / (_LARGEST_PART * (1 - _SCALE_ERROR) * step)
        elif params.scale.dim():
            needed = size / (largest_bias(bias_bits) * step)
            lost = size / step - largest_bias(bias_bits) * params.scale.double()
            rounding = torch.minimum(rows.abs().double(), needed[:, None] / 4).sum(dim=1)
            needed = torch.where(rounding * reach / 4 < lost, needed, 0.0)
        else:
            needed = torch.zeros_like(least)
        least = torch.maximum(least, needed)
    return least.clamp_max(_LARGEST_SCALE).to(params.scale.dtype)
