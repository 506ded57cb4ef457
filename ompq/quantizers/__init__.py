"""Quantizer parts shared by every stage: affine arithmetic and the choice of scales."""

from ompq.quantizers.affine import QuantParams, dequantize, fake_quantize, quantize
from ompq.quantizers.rounding import round_weights
from ompq.quantizers.scale import lp_scale, min_max_scale

__all__ = [
    "QuantParams",
    "dequantize",
    "fake_quantize",
    "lp_scale",
    "min_max_scale",
    "quantize",
    "round_weights",
]
