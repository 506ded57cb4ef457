"""Quantizer parts shared by every stage: affine arithmetic, scales, rounding, learned steps."""

from ompq.quantizers.activation import ActivationQuantizer, activation_quantizers, enabled
from ompq.quantizers.adaround import AdaRound
from ompq.quantizers.affine import QuantParams, dequantize, fake_quantize, quantize, round_to
from ompq.quantizers.learned_step import learned_step_quantize
from ompq.quantizers.sample import some_values
from ompq.quantizers.scale import lp_scale, min_max_scale

__all__ = [
    "ActivationQuantizer",
    "AdaRound",
    "QuantParams",
    "activation_quantizers",
    "dequantize",
    "enabled",
    "fake_quantize",
    "learned_step_quantize",
    "lp_scale",
    "min_max_scale",
    "quantize",
    "round_to",
    "some_values",
]
