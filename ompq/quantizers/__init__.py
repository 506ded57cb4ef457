"""Fake quantizers that the stages share, from affine arithmetic to learned rounding.

    QuantParams              affine.py      scale, zero point and range of integers
    quantize, dequantize     affine.py      floats to integers, integers to floats
    fake_quantize, round_to  affine.py      both in one, straight-through gradients
    min_max_scale, lp_scale  scale.py       scale and zero point by range, or by search
    sample_values            scale.py       as many values as such a search needs
    fit_activation_scale     scale.py       such a search for an activation
    learned_step_quantize    lsq.py         fake quantization with a gradient for the scale
    AdaRound                 adaround.py    a weight that learns to be rounded up or down
    ActivationQuantizer      activation.py  the fake quantizer of one activation, as a module
    activation_quantizers    activation.py  all of a network's
    enabled                  activation.py  switch them on or off for a while

scale_bounds.py rules out candidates of `lp_scale` before they are evaluated.
"""

from ompq.quantizers.activation import ActivationQuantizer, activation_quantizers, enabled
from ompq.quantizers.adaround import AdaRound
from ompq.quantizers.affine import QuantParams, dequantize, fake_quantize, quantize, round_to
from ompq.quantizers.lsq import learned_step_quantize
from ompq.quantizers.scale import fit_activation_scale, lp_scale, min_max_scale, sample_values

__all__ = [
    "ActivationQuantizer",
    "AdaRound",
    "QuantParams",
    "activation_quantizers",
    "dequantize",
    "enabled",
    "fake_quantize",
    "fit_activation_scale",
    "learned_step_quantize",
    "lp_scale",
    "min_max_scale",
    "quantize",
    "round_to",
    "sample_values",
]
