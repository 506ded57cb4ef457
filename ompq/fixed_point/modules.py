"""What a network is made of once it computes with integers: layers, requantizations, joints.

In training all of them compute in float on the quantized grids, with gradients that pass straight
through the rounding. In evaluation they compute what integer hardware computes, to the bit: values
are float64 multiples of their grid, sums are exact, and rescaling is dyadic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, pad
from torch.nn.modules.batchnorm import _BatchNorm

from ompq.fixed_point.dyadic import Dyadic
from ompq.fixed_point.grids import ActivationGrid, FixedWeightGrid, WeightGrid
from ompq.fixed_point.norms import normalise
from ompq.quantizers import QuantParams, quantize

# Sums of integers below this are exact in float32, in any order.
_EXACT_IN_FLOAT32 = 2**24
# A batch norm's weight closer to zero than this would make the folded weight vanish in training.
_SMALLEST_GAIN = 1e-5


@dataclass(frozen=True)
class Origin:
    """Who decides the grid of a value: a layer, a requantization or a joint, and a divisor.

    An average over k values is their sum on a grid k times as fine.
    """

    module: QuantizedLayer | Requantizer | Joint
    divisor: int = 1

    @property
    def per_channel(self) -> bool:
        """Whether the grid differs between channels."""
        return isinstance(self.module, QuantizedLayer)

    def step(self) -> Tensor:
        """The grid's scale: float64, of a shape that broadcasts to the value's."""
        return self.module.step() / self.divisor


@dataclass(frozen=True)
class LayerIntegers:
    """What integer hardware holds of a layer: weight and bias as int64, and the sums' scale.

    The weight's zero point is subtracted. `step` is float64, one per output channel, of a shape
    that broadcasts to the output's.
    """

    weight: Tensor
    bias: Tensor | None
    step: Tensor

    def largest_sums(self, reach: int) -> Tensor:
        """Per output channel, what |sums| cannot exceed for inputs of at most `reach`."""
        largest = self.weight.abs().flatten(1).sum(dim=1) * reach
        return largest if self.bias is None else largest + self.bias.abs()


class QuantizedLayer(nn.Module):
    """A convolution or linear layer with its batch norm, in integers of `grid.bits` bits.

    While the batch norm's statistics are being learned, the weight is folded and quantized with
    the running ones and the output normalised with the batch's, as training without quantization
    does; with them frozen, and in evaluation, weight and bias are folded and quantized.
    """

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        norm: _BatchNorm | None,
        grid: WeightGrid | FixedWeightGrid,
        bias_bits: int,
    ) -> None:
        super().__init__()
        self.layer, self.norm, self.grid = layer, norm, grid
        self.bias_bits = bias_bits
        self.freeze_norm = False
        self.enabled = True
        self._source: tuple[Requantizer, ...] = ()
        self._integers: LayerIntegers | None = None

    def read_from(self, source: Requantizer) -> None:
        """Tell whose integers this layer reads."""
        self._source = (source,)

    @property
    def has_source(self) -> bool:
        """Whether it is known whose integers this layer reads."""
        return bool(self._source)

    @property
    def source(self) -> Requantizer:
        """Whose integers this layer reads."""
        return self._source[0]

    def forward(self, x: Tensor) -> Tensor:
        """What the layer and its batch norm compute."""
        if not self.enabled:
            return self._float(x)
        return self._train(x) if self.training else self._evaluate(x)

    def _float(self, x: Tensor) -> Tensor:
        return self._normalise(self._multiply(x, self.layer.weight, self.layer.bias))

    def _train(self, x: Tensor) -> Tensor:
        learning = self.norm is not None and not self.freeze_norm
        gain = None if self.norm is None else self._by_output(self._gain(safe=learning))
        if learning and gain is not None:
            gain = gain.detach()
        weight, scale = self._on_grid(self.layer.weight, gain)
        if learning:
            # The batch's statistics undo whatever the running ones would do to a channel.
            weight = weight if gain is None or self.grid.follows_channels else weight / gain
            return self._normalise(self._multiply(x, weight, self.layer.bias))
        if gain is not None and self.grid.follows_channels:
            weight = weight * gain
        return self._multiply(x, weight, self._rounded_bias(self._folded_bias(), scale))

    def _on_grid(self, weight: Tensor, gain: Tensor | None) -> tuple[Tensor, Tensor]:
        """The weight on its grid, and the scale per channel that it has when folded.

        Folded, except where folding does not change the integers.
        """
        if gain is None or self.grid.follows_channels:
            params = self.grid.params(weight)
            factor = 1.0 if gain is None else gain.detach().flatten().abs()
            return self.grid(weight, params), params.scale * factor
        folded = weight * gain
        params = self.grid.params(folded)
        return self.grid(folded, params), params.scale

    @torch.no_grad()
    def _evaluate(self, x: Tensor) -> Tensor:
        held = self.integers()
        fits = int(held.largest_sums(self.source.largest).max()) < _EXACT_IN_FLOAT32
        exact = torch.float32 if x.device.type == "cpu" and fits else torch.float64
        whole = torch.round(x.double() / self.source.step())
        sums = self._multiply(whole.to(exact), held.weight.to(exact), None).double()
        if held.bias is not None:
            sums += self._along_channels(held.bias.double())
        values = sums * held.step
        if self.has_float_bias:
            values += self._along_channels(self.folded()[1])  # type: ignore[arg-type]
        return values

    def train(self, mode: bool = True) -> QuantizedLayer:
        """Integers are computed anew after every change of mode."""
        self._integers = None
        return super().train(mode)

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
        return x if self.norm is None else normalise(x, self.norm, self.freeze_norm)

    def _gain(self, safe: bool = False) -> Tensor:
        """γ / σ of the batch norm, per channel."""
        norm = self.norm
        if norm is None or norm.running_var is None:
            raise TypeError("only a batch norm with running statistics can be folded")
        inverse = torch.rsqrt(norm.running_var + norm.eps)
        if norm.weight is None:
            return inverse
        if not safe:
            return norm.weight * inverse
        return (
            torch.where(norm.weight.abs() < _SMALLEST_GAIN, _SMALLEST_GAIN, norm.weight) * inverse
        )

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Float weight and bias with the batch norm's running statistics in them."""
        weight = self.layer.weight
        if self.norm is not None:
            weight = weight * self._by_output(self._gain())
        return weight, self._folded_bias()

    def _folded_bias(self) -> Tensor | None:
        norm, bias = self.norm, self.layer.bias
        if norm is None or norm.running_mean is None:
            return bias
        shift = -norm.running_mean if bias is None else bias - norm.running_mean
        return shift * self._gain() + (0.0 if norm.bias is None else norm.bias)

    def _by_output(self, values: Tensor) -> Tensor:
        """One value per output channel, to go with the weight."""
        return values.view(-1, *[1] * (self.layer.weight.dim() - 1))

    def _along_channels(self, values: Tensor) -> Tensor:
        """One value per output channel, to go with the output."""
        return values if isinstance(self.layer, nn.Linear) else values.view(-1, 1, 1)

    @torch.no_grad()
    def integers(self) -> LayerIntegers:
        """What the layer is in evaluation."""
        if self._integers is not None:
            return self._integers
        whole, params = self.stored()
        bias = self._folded_bias()
        zero_point = params.zero_point
        held = LayerIntegers(
            (whole - (self._by_output(zero_point) if zero_point.dim() else zero_point)).long(),
            None if bias is None or not self.bias_bits else self._bias_integers(bias, params.scale),
            self._along_channels(self._scales(params.scale)),
        )
        if not self.training:
            self._integers = held
        return held

    @torch.no_grad()
    def stored(self) -> tuple[Tensor, QuantParams]:
        """The folded weight's integers (int32) and their grid."""
        weight = self.layer.weight
        if self.norm is None or not self.grid.follows_channels:
            weight = self.folded()[0]
            params = self.grid.params(weight)
            return quantize(weight, params), params
        params, gain = self.grid.params(weight), self._gain()
        whole = quantize(weight, params) * self._by_output(gain.sign().int())
        scale = params.scale * torch.where(gain == 0, 1.0, gain.abs())
        return whole, QuantParams(scale, params.zero_point, params.low, params.high)

    @property
    def has_float_bias(self) -> bool:
        """Whether a bias is added in float (`bias_bits` 0), which integers cannot follow."""
        return not self.bias_bits and (self.norm is not None or self.layer.bias is not None)

    def _bias_integers(self, bias: Tensor, scale: Tensor) -> Tensor:
        limit = 2 ** (self.bias_bits - 1) - 1
        return torch.round(bias.double() / self._scales(scale)).clamp_(-limit, limit).long()

    def _rounded_bias(self, bias: Tensor | None, scale: Tensor) -> Tensor | None:
        """The bias on its grid, with a gradient straight through."""
        if bias is None or not self.bias_bits:
            return bias
        with torch.no_grad():
            whole = self._bias_integers(bias, scale)
            rounded = (whole * self._scales(scale)).to(bias.dtype)
        return bias + (rounded - bias).detach()

    def _scales(self, scale: Tensor) -> Tensor:
        """Scale of the sums per output channel: that of the input times that of the weight."""
        return (scale.double() * self.source.step()).expand(self.layer.weight.shape[0])

    def step(self) -> Tensor:
        """The sums' scale, float64."""
        return self.integers().step

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"bits={self.grid.bits}"


class Requantizer(nn.Module):
    """Puts a value onto the grid that layers read, or that sums are taken on.

    Args:
        grid: scale and zero point.
        dyadic: rescale by an integer and a shift; else by the real factor, which no integer
            hardware computes.

    `clip` is what an activation before it clipped to.
    """

    def __init__(self, grid: ActivationGrid, dyadic: bool) -> None:
        super().__init__()
        self.grid, self.dyadic = grid, dyadic
        self.enabled = True
        self.clip: tuple[float, float] | None = None
        self.origin: Origin | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same, on the grid."""
        if self.training and self.enabled:
            out: Tensor = self.grid(x, self.clip)
            return out
        if self.clip is not None:
            x = x.clamp(*self.clip)
        if not self.enabled:
            return x
        return self.values(self.requantize(x, self.origin))

    @property
    def reach(self) -> tuple[int, int]:
        """Least and largest integer less the zero point."""
        zero_point = int(self.grid.zero_point)
        return self.grid.low - zero_point, self.grid.high - zero_point

    @property
    def largest(self) -> int:
        """Largest magnitude of an integer less the zero point."""
        return max(abs(bound) for bound in self.reach)

    def step(self) -> Tensor:
        """Scale of the grid, float64 scalar."""
        return self.grid.step().double()

    def factor(self, origin: Origin) -> Dyadic:
        """What takes integers of another grid to this one."""
        return Dyadic.of(origin.step() / self.step())

    @torch.no_grad()
    def requantize(self, x: Tensor, origin: Origin | None) -> Tensor:
        """Integers less the zero point (float64), not yet clamped, of a value on a known grid.

        A value in float (`origin` None) is rounded to nearest.
        """
        if origin is None or not self.dyadic:
            return torch.round(x.double() / self.step())
        return self.factor(origin).apply_float(torch.round(x.double() / origin.step()))

    @torch.no_grad()
    def values(self, whole: Tensor) -> Tensor:
        """Integers less the zero point → clamped, as multiples of the scale."""
        return whole.clamp(*self.reach) * self.step()

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"bits={self.grid.bits}"


class Joint(Requantizer):
    """A sum or a concatenation whose parts come from different grids: rescaled, then joined.

    Args:
        kind: `add` or `cat`.
        dim: of the concatenation.
    """

    def __init__(self, grid: ActivationGrid, dyadic: bool, kind: str, dim: int = 1) -> None:
        super().__init__(grid, dyadic)
        self.kind, self.dim = kind, dim
        self.origins: tuple[Origin, ...] = ()

    def forward(self, *parts: Tensor) -> Tensor:
        """Parts → their sum or concatenation."""
        if self.training or not self.enabled:
            # 16 bits are finer than training could tell: it needs their range only.
            joined = self.join(parts)
            if self.enabled and self.grid.observing:
                self.grid.observe(joined)
            return joined
        pairs = zip(parts, self.origins, strict=True)
        return self.values(self.join([self.requantize(part, origin) for part, origin in pairs]))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """As the float network does."""
        if self.kind == "cat":
            return torch.cat(list(parts), dim=self.dim)
        return parts[0] + parts[1]


class Exact(nn.Module):
    """Rids an average at the network's output of float64's rounding, in evaluation."""

    def __init__(self, origin: Origin) -> None:
        super().__init__()
        self.origin = origin

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same, exact multiples of the grid."""
        if self.training or x.dtype != torch.float64:
            return x
        step = self.origin.step()
        return torch.round(x / step) * step
