"""Layers that compute with integers, batch norm folded into them.

In training they compute in float on fake-quantized values, with gradients that pass straight
through the rounding. In evaluation they compute what integer hardware computes, to the bit: values
are float64 multiples of their scale, and sums are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, pad
from torch.nn.modules.batchnorm import _BatchNorm

from ompq.integer.batch_norm import apply_batch_norm, separate_from_ranks
from ompq.integer.fake_quantizers import (
    SMALLEST_SCALE,
    FixedWeightFakeQuantizer,
    WeightFakeQuantizer,
)
from ompq.integer.layer_integers import HeldBias, LayerIntegers
from ompq.integer.requantization import Requantizer
from ompq.integer.scale_limits import find_least_scale, largest_bias
from ompq.quantizers import QuantParams, quantize

# Sums of integers below this are exact in float32, in any order.
_EXACT_IN_FLOAT32 = 2**24
# A batch norm's weight closer to zero than this would make the folded weight vanish in training.
_SMALLEST_GAIN = 1e-5
# A batch norm's γ / σ closer to zero than this is 0.
_VANISHING_GAIN = 1e-20


class QuantizedLayer(nn.Module):
    """A convolution or linear layer with its batch norm, its weight in integers.

    While the batch norm's statistics are being learned, the weight is folded and quantized with
    the running ones and the output normalised with the batch's, as training without quantization
    does; with them frozen, and in evaluation, weight and bias are folded and quantized.

    A channel's scale is raised where its bias, or its sums, would not fit into 32 bits otherwise.

    Args:
        layer: The float layer.
        norm: Batch norm that follows it; None where there is none.
        fake_quantizer: Fake quantizer of the weight.
        bias_bits: Width of the bias; 0 leaves it in float.

    Attributes:
        raises_scales: Whether scales are raised; not so where they were written down so.
        in_float: Whether the output is taken for a value in float, and rescaled by nobody.
    """

    scales_channels = True
    bits = 32

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        norm: _BatchNorm | None,
        fake_quantizer: WeightFakeQuantizer | FixedWeightFakeQuantizer,
        bias_bits: int,
    ) -> None:
        super().__init__()
        # In this order, which is that of the parameters in the optimizer's state of checkpoints.
        self.layer = layer
        self.norm = None if norm is None else separate_from_ranks(norm)
        self.fake_quantizer = fake_quantizer
        self.bias_bits = bias_bits
        self.freeze_norm = False
        self.enabled = True
        self.raises_scales = True
        self.in_float = False
        # In tuples, which keep these from becoming submodules of every reader.
        self._source: tuple[Requantizer, ...] = ()
        self._sharers: tuple[QuantizedLayer, ...] = (self,)
        self._integers: LayerIntegers | None = None
        self._held_bias: HeldBias | None = None

    def read_from(self, source: Requantizer) -> None:
        """Set the requantizer whose integers this layer reads."""
        self._source = (source,)

    @torch.no_grad()
    def hold_bias(self, whole: Tensor) -> None:
        """Adopt a bias in integers, one per output channel, until training changes bias or scale.

        Rounding the float bias that they stand for could give others: float32 has 24 bits.
        """
        bias = self.layer.bias
        assert bias is not None and self.norm is None
        scale = self._scale_sums(self.fake_quantizer.compute_params(self.layer.weight).scale)
        whole = whole.to(device=bias.device, dtype=torch.int64)
        bias.copy_(whole * scale)
        self._held_bias = HeldBias(whole.cpu(), bias.detach().cpu().clone(), scale.cpu())

    def share_weight(self, layers: Sequence[QuantizedLayer]) -> None:
        """Set the layers, this one included, that compute with one weight, and so with one scale.

        No batch norm is folded into them.
        """
        self._sharers = tuple(layers)

    @property
    def weight(self) -> Tensor:
        """Return the weight for whoever reads the layer's own: fake-quantized, without norm."""
        weight = self.layer.weight
        if not self.enabled or self.norm is not None:
            return weight
        return self._fake_quantize_weight(weight, None)[0]

    @property
    def bias(self) -> Tensor | None:
        """Return the bias for whoever reads the layer's own."""
        return self.layer.bias

    @property
    def has_source(self) -> bool:
        """Tell whether it is known whose integers this layer reads."""
        return bool(self._source)

    @property
    def source(self) -> Requantizer:
        """Return the requantizer whose integers this layer reads."""
        return self._source[0]

    @property
    def has_float_bias(self) -> bool:
        """Tell whether a bias is added in float (`bias_bits` 0), which integers cannot follow."""
        return not self.bias_bits and (self.norm is not None or self.layer.bias is not None)

    @property
    def gives_floats(self) -> bool:
        """Tell whether the output is a value in float."""
        return self.in_float or self.has_float_bias

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer and its batch norm for an input of n × channels (× height × width)."""
        if not self.enabled:
            return self._normalise(self._multiply(x, self.layer.weight, self.layer.bias))
        return self._train(x) if self.training else self._evaluate(x)

    def _train(self, x: Tensor) -> Tensor:
        learning = self.norm is not None and not self.freeze_norm
        gain = None if self.norm is None else self._align_to_weight(self._compute_gain(learning))
        if learning and gain is not None:
            # The batch norm's weight learns by the output that it scales below, not by rounding.
            gain = gain.detach()
        weight, scale = self._fake_quantize_weight(self.layer.weight, gain)
        follows_channels = self.fake_quantizer.follows_channels
        if learning:
            # The batch's statistics undo whatever the running ones would do to a channel.
            weight = weight if gain is None or follows_channels else weight / gain
            return self._normalise(self._multiply(x, weight, self.layer.bias))
        if gain is not None and follows_channels:
            weight = weight * gain
        return self._multiply(x, weight, self._round_bias(self._fold_bias(), scale))

    def _fake_quantize_weight(self, weight: Tensor, gain: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the fake-quantized weight, and the scale per channel that it has when folded.

        The weight is folded first, except where folding does not change the integers.
        """
        if gain is None:
            params = self._compute_params(weight)
            return self.fake_quantizer(weight, params), params.scale
        if self.fake_quantizer.follows_channels:
            gain = gain.detach()
            params, factor = self._compute_params_of_channels(weight, gain.flatten())
            sign = torch.copysign(torch.ones_like(gain), gain)
            return self.fake_quantizer(weight, params, sign), params.scale * factor
        folded = weight * gain
        params = self._compute_params(folded)
        return self.fake_quantizer(folded, params), params.scale

    @torch.no_grad()
    def _compute_params_of_channels(
        self, weight: Tensor, gain: Tensor
    ) -> tuple[QuantParams, Tensor]:
        """Compute scales and zero points of a weight that is not folded.

        Args:
            weight: The weight.
            gain: What folding multiplies each channel by.

        Returns:
            Scales and zero points, and what folding multiplies the scales by.
        """
        sign, factor = _split(gain)
        params = self.fake_quantizer.compute_params(weight)
        # Of a channel that vanishes only the bias counts, which its scale is for.
        scale = torch.where(sign == 0, SMALLEST_SCALE, params.scale)
        return self._raise_scale(weight, replace(params, scale=scale), factor), factor

    def _compute_params(self, weight: Tensor) -> QuantParams:
        """Compute scale and zero point of a folded weight."""
        return self._raise_scale(weight, self.fake_quantizer.compute_params(weight), None)

    @torch.no_grad()
    def _raise_scale(
        self, weight: Tensor, params: QuantParams, factor: Tensor | None
    ) -> QuantParams:
        """Raise the scale of a weight where 32 bits need it.

        Args:
            weight: The weight, folded or not.
            params: Scale and zero point of it.
            factor: What folding multiplies the scale of each channel by; None for a folded weight.
        """
        limits = [
            layer._find_least_scale(weight, params, factor)
            for layer in self._sharers
            if layer.has_source and layer.raises_scales
        ]
        if not limits:
            return params
        least = torch.stack(limits).amax(dim=0)
        least = least if params.scale.dim() else least.max()
        return replace(params, scale=torch.maximum(params.scale, least))

    def _find_least_scale(
        self, weight: Tensor, params: QuantParams, factor: Tensor | None
    ) -> Tensor:
        bias = self._fold_bias() if self.bias_bits else None
        if bias is not None and factor is not None:
            bias = bias / factor
        return find_least_scale(weight, params, self.source.fake_quantizer, bias, self.bias_bits)

    @torch.no_grad()
    def clamps_bias(self) -> bool:
        """Tell whether a bias exceeds its width, and is clamped."""
        bias = self._fold_bias()
        if bias is None or not self.bias_bits or not self.has_source:
            return False
        whole = torch.round(bias.double() / self.compute_integers().scale.flatten())
        return bool((whole.abs() > largest_bias(self.bias_bits)).any())

    @torch.no_grad()
    def _evaluate(self, x: Tensor) -> Tensor:
        held = self.compute_integers()
        fits = int(held.bound_sums(self.source.largest).max()) < _EXACT_IN_FLOAT32
        # Float32 is faster where it is exact; not so on CUDA, where it may be TF32.
        exact = torch.float32 if x.device.type == "cpu" and fits else torch.float64
        whole = torch.round(x.double() / self.source.get_scale())
        sums = self._multiply(whole.to(exact), held.weight.to(exact), None).double()
        if held.bias is not None:
            sums += self._align_to_output(held.bias.double())
        values = sums * held.scale
        if self.has_float_bias:
            values += self._align_to_output(self.fold()[1])  # type: ignore[arg-type]
        return values.float() if self.in_float else values

    def train(self, mode: bool = True) -> QuantizedLayer:
        """Switch between training and evaluation; integers are computed anew after it."""
        self._integers = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> QuantizedLayer:
        """Change the layer's tensors (their device); integers are computed anew after it."""
        self._integers = None
        return super()._apply(fn, recurse)

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return linear(x, weight, bias)
        padding: Any = layer.padding
        if layer.padding_mode != "zeros":
            x = pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
            padding = 0
        return conv2d(x, weight, bias, layer.stride, padding, layer.dilation, layer.groups)

    def _normalise(self, x: Tensor) -> Tensor:
        return x if self.norm is None else apply_batch_norm(x, self.norm, self.freeze_norm)

    def _compute_gain(self, away_from_zero: bool = False) -> Tensor:
        """Return γ / σ of the batch norm, per channel."""
        norm = self.norm
        if norm is None or norm.running_var is None:
            raise TypeError("only a batch norm with running statistics can be folded")
        inverse = torch.rsqrt(norm.running_var + norm.eps)
        if norm.weight is None:
            return inverse
        if not away_from_zero:
            return norm.weight * inverse
        weight = torch.where(norm.weight.abs() < _SMALLEST_GAIN, _SMALLEST_GAIN, norm.weight)
        return weight * inverse

    @torch.no_grad()
    def read_rounded_weight(self, per_channel: bool) -> Tensor:
        """Return the weight that is rounded: folded, or with the sign alone of each channel's gain.

        Args:
            per_channel: Whether every output channel has a scale, which takes the magnitude.
        """
        if not per_channel or self.norm is None:
            return self.fold()[0]
        return self.layer.weight * self._align_to_weight(_split(self._compute_gain())[0])

    def fold(self) -> tuple[Tensor, Tensor | None]:
        """Return float weight and bias with the batch norm's running statistics in them."""
        weight = self.layer.weight
        if self.norm is not None:
            weight = weight * self._align_to_weight(self._compute_gain())
        return weight, self._fold_bias()

    def _fold_bias(self) -> Tensor | None:
        norm, bias = self.norm, self.layer.bias
        if norm is None or norm.running_mean is None:
            return bias
        shift = -norm.running_mean if bias is None else bias - norm.running_mean
        return shift * self._compute_gain() + (0.0 if norm.bias is None else norm.bias)

    def _align_to_weight(self, values: Tensor) -> Tensor:
        """Reshape one value per output channel so that it broadcasts to the weight."""
        return values.view(-1, *[1] * (self.layer.weight.dim() - 1))

    def _align_to_output(self, values: Tensor) -> Tensor:
        """Reshape one value per output channel so that it broadcasts to the output."""
        return values if isinstance(self.layer, nn.Linear) else values.view(-1, 1, 1)

    @torch.no_grad()
    def compute_integers(self) -> LayerIntegers:
        """Return what the layer is in evaluation, kept until the mode changes."""
        if self._integers is not None:
            return self._integers
        whole, params = self.quantize_weight()
        bias = self._fold_bias()
        zero_point = params.zero_point
        held = LayerIntegers(
            (
                whole - (self._align_to_weight(zero_point) if zero_point.dim() else zero_point)
            ).short(),
            None if bias is None or not self.bias_bits else self._quantize_bias(bias, params.scale),
            self._align_to_output(self._scale_sums(params.scale)),
        )
        if not self.training:
            self._integers = held
        return held

    @torch.no_grad()
    def quantize_weight(self) -> tuple[Tensor, QuantParams]:
        """Return the folded weight's integers (int32), and their scale and zero point."""
        weight = self.layer.weight
        if self.norm is None or not self.fake_quantizer.follows_channels:
            weight = self.fold()[0]
            params = self._compute_params(weight)
            return quantize(weight, params), params
        # Quantized as in training, then folded: folding first could round otherwise.
        gain = self._compute_gain()
        params, factor = self._compute_params_of_channels(weight, gain)
        whole = quantize(weight * self._align_to_weight(_split(gain)[0]), params)
        return whole, replace(params, scale=params.scale * factor)

    def _quantize_bias(self, bias: Tensor, scale: Tensor) -> Tensor:
        limit, scale = largest_bias(self.bias_bits), self._scale_sums(scale)
        if self._held_bias is not None:
            if self._held_bias.stands_for(bias, scale):
                return self._held_bias.whole.to(bias.device)
            self._held_bias = None
        return torch.round(bias.double() / scale).clamp_(-limit, limit).long()

    def _round_bias(self, bias: Tensor | None, scale: Tensor) -> Tensor | None:
        """Fake-quantize the bias, with a gradient straight through."""
        if bias is None or not self.bias_bits:
            return bias
        with torch.no_grad():
            whole = self._quantize_bias(bias, scale)
            rounded = (whole * self._scale_sums(scale)).to(bias.dtype)
        return bias + (rounded - bias).detach()

    def _scale_sums(self, scale: Tensor) -> Tensor:
        """Return the sums' scale per output channel: the input's times the weight's `scale`."""
        return (scale.double() * self.source.get_scale()).expand(self.layer.weight.shape[0])

    def get_scale(self) -> Tensor:
        """Return the scale of the sums: float64, one per output channel."""
        return self.compute_integers().scale

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return f"bits={self.fake_quantizer.bits}"


def _split(gain: Tensor) -> tuple[Tensor, Tensor]:
    """Split a gain into its sign, which comes before rounding, and what scales are multiplied by.

    Integers need not reach as far below zero as above it. A vanishing gain makes the channel's
    integers 0; its scale must stay positive.
    """
    size = gain.abs()
    vanishing = size < _VANISHING_GAIN
    return torch.where(vanishing, 0.0, gain.sign()), torch.where(vanishing, 1.0, size)
