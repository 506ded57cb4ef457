"""Requantization: values put on the scale that layers read, or that sums are taken at.

In training these modules compute in float on fake-quantized values, with gradients that pass
straight through the rounding. In evaluation they compute what integer hardware computes, to the
bit: values are float64 multiples of their scale, and rescaling is dyadic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ompq.integer.dyadic import LARGEST_FACTOR, Dyadic
from ompq.integer.fake_quantizers import ActivationFakeQuantizer
from ompq.integer.forms import map_tensors


class Scaled(Protocol):
    """What gives a value its scale: a layer of quantized weights, or a requantizer."""

    scales_channels: bool

    @property
    def bits(self) -> int:
        """Return the width of its integers, sign included."""

    def get_scale(self) -> Tensor:
        """Return the scale: float64, of a shape that broadcasts to the value's."""


@dataclass(frozen=True)
class ScaleSource:
    """The module that decides the scale of a value, and what has become of that scale since.

    An average over k values is their sum at a k-th of the scale.

    Attributes:
        module: Layer or requantizer (sums and concatenations included) whose scale it is.
        divisor: What the scale is divided by.
        factor: What the scale is multiplied by.
        count: How many of the module's integers the value is the sum of.
        flat: Whether a convolution's outputs of 1 × 1 were flattened: channels are last then.
    """

    module: Scaled
    divisor: int = 1
    factor: float = 1.0
    count: int = 1
    flat: bool = False

    @property
    def is_rounded(self) -> bool:
        """Tell whether values are exact multiples of the scale in float64: nothing changed it."""
        return self.divisor == 1 and self.factor == 1

    @property
    def per_channel(self) -> bool:
        """Tell whether the scale differs between channels."""
        return self.module.scales_channels

    def get_scale(self) -> Tensor:
        """Return the scale: float64, of a shape that broadcasts to the value's."""
        scale = self.module.get_scale()
        scale = scale.flatten() if self.flat else scale
        return scale * self.factor / self.divisor


class Requantizer(nn.Module):
    """Gives a value the scale and zero point that layers read, or that averages are taken of.

    Args:
        fake_quantizer: Fake quantizer that decides scale and zero point.
        dyadic: Whether rescaling is by an integer and a shift, rather than by the real factor,
            which no integer hardware computes.

    Attributes:
        clip: Bounds of an activation before it, which clips here; None where there is none.
        scale_source: Source of the scale that the value has before; None where it is in float.
    """

    scales_channels = False

    def __init__(self, fake_quantizer: ActivationFakeQuantizer, dyadic: bool) -> None:
        super().__init__()
        self.fake_quantizer, self.dyadic = fake_quantizer, dyadic
        self._place = fake_quantizer.add_place()
        self.enabled = True
        self.clip: tuple[float, float] | None = None
        self.scale_source: ScaleSource | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Requantize a value of any shape: multiples of this scale."""
        if self.training and self.enabled:
            out: Tensor = self.fake_quantizer(x, self.clip, self._place)
            return out
        if self.clip is not None:
            x = x.clamp(*self.clip)
        if not self.enabled:
            return x
        return self.clamp_and_scale(self.requantize(x, self.scale_source))

    @property
    def reach(self) -> tuple[int, int]:
        """Return the least and the largest integer, less the zero point."""
        zero_point = int(self.fake_quantizer.zero_point)
        return self.fake_quantizer.low - zero_point, self.fake_quantizer.high - zero_point

    @property
    def bits(self) -> int:
        """Return the width of the integers."""
        return self.fake_quantizer.bits

    @property
    def largest(self) -> int:
        """Return the largest magnitude of an integer less the zero point."""
        return max(abs(bound) for bound in self.reach)

    def get_scale(self) -> Tensor:
        """Return the scale of the result, float64 scalar."""
        return self.fake_quantizer.get_scale().double()

    def compute_factor(self, scale_source: ScaleSource) -> Dyadic:
        """Return the factor that takes integers of another scale to this one.

        A factor beyond what a dyadic number holds takes every integer but 0 beyond the range, and
        so does the largest one that it holds.
        """
        factor = scale_source.get_scale() / self.get_scale()
        return Dyadic.approximate(factor.clamp_max(LARGEST_FACTOR))

    @torch.no_grad()
    def requantize(self, x: Tensor, scale_source: ScaleSource | None) -> Tensor:
        """Return a value's integers at this scale, less the zero point, not yet clamped.

        Args:
            x: Value, any shape.
            scale_source: Source of the scale that `x` has; None for one in float, which is rounded
                to nearest.

        Returns:
            Integers as float64, of the shape of `x`.
        """
        if scale_source is None or not self.dyadic:
            return torch.round(x.double() / self.get_scale())
        # Rounded first: float64 multiples of a scale are integers but for their last bits.
        whole = torch.round(x.double() / scale_source.get_scale())
        return self.compute_factor(scale_source).apply_float(whole)

    @torch.no_grad()
    def clamp_and_scale(self, whole: Tensor) -> Tensor:
        """Return the values that integers less the zero point stand for, once clamped."""
        return whole.clamp(*self.reach) * self.get_scale()

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return f"bits={self.fake_quantizer.bits}"


class QuantizedAdd(Requantizer):
    """A sum of two values of different scales, which are rescaled to one and then added.

    Args:
        fake_quantizer: Fake quantizer that decides scale and zero point of the sum.
        dyadic: Whether rescaling is by an integer and a shift, as in `Requantizer`.
        scale_sources: Source of the scale of each part.
    """

    def __init__(
        self,
        fake_quantizer: ActivationFakeQuantizer,
        dyadic: bool,
        scale_sources: tuple[ScaleSource, ...],
    ) -> None:
        super().__init__(fake_quantizer, dyadic)
        self.scale_sources = scale_sources

    def forward(self, *parts: Tensor) -> Tensor:
        """Rescale the parts and combine them."""
        if self.training or not self.enabled:
            # 16 bits are finer than training could tell: it needs their range only.
            combined = self.combine(parts)
            if self.enabled and self.fake_quantizer.observing:
                self.fake_quantizer.observe(combined, place=self._place)
            return combined
        pairs = zip(parts, self.scale_sources, strict=True)
        whole = self.combine([self.requantize(part, source) for part, source in pairs])
        return self.clamp_and_scale(whole)

    def combine(self, parts: Sequence[Tensor]) -> Tensor:
        """Add two parts, floats or integers."""
        return parts[0] + parts[1]


class QuantizedCat(QuantizedAdd):
    """A concatenation of values of different scales, which are rescaled to one first.

    Args:
        fake_quantizer: Fake quantizer that decides scale and zero point of the concatenation.
        dyadic: Whether rescaling is by an integer and a shift, as in `Requantizer`.
        scale_sources: Source of the scale of each part.
        dim: Dimension along which the parts are concatenated.
        stacks: Whether that dimension is a new one.
    """

    def __init__(
        self,
        fake_quantizer: ActivationFakeQuantizer,
        dyadic: bool,
        scale_sources: tuple[ScaleSource, ...],
        dim: int,
        stacks: bool = False,
    ) -> None:
        super().__init__(fake_quantizer, dyadic, scale_sources)
        self.dim, self.stacks = dim, stacks

    def combine(self, parts: Sequence[Tensor]) -> Tensor:
        """Concatenate parts, floats or integers."""
        join = torch.stack if self.stacks else torch.cat
        return join(list(parts), dim=self.dim)


class OutputRounding(nn.Module):
    """Makes values exact multiples of their scale, in evaluation.

    An average at the network's output is rid of float64's rounding; a value that was clipped at a
    bound between two integers gets the one that integer hardware clips at.

    Args:
        scale_source: Source of the scale of the value.
    """

    def __init__(self, scale_source: ScaleSource) -> None:
        super().__init__()
        self.scale_source = scale_source

    def forward(self, x: Tensor) -> Tensor:
        """Round a value of any shape to exact multiples of its scale."""
        if self.training or x.dtype != torch.float64:
            return x
        return round_to_multiples(x, self.scale_source)


class Dequantizer(nn.Module):
    """Hands integers to an operation that computes in float: integers · scale, as float32.

    Args:
        scale_source: Source of the scale of the integers; None for float64 values, of a layer whose
            bias is in float.
    """

    def __init__(self, scale_source: ScaleSource | None) -> None:
        super().__init__()
        self.scale_source = scale_source

    def forward(self, x: Any) -> Any:
        """Cast a tensor of any shape, or each one of a tuple."""
        return map_tensors(x, self._cast)

    def _cast(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        wide = not self.training and x.dtype == torch.float64
        if wide and self.scale_source is not None:
            x = round_to_multiples(x, self.scale_source)
        # One layout in memory, since kernels may round differently for another.
        return x.float().contiguous()


def round_to_multiples(x: Tensor, scale_source: ScaleSource) -> Tensor:
    """Round float64 values to exact multiples of a scale.

    Args:
        x: Values, multiples but for the last bits of float64; any shape.
        scale_source: Source of the scale of the value.
    """
    scale = scale_source.get_scale()
    return torch.round(x / scale) * scale
