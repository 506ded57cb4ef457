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
        out = self._multiply(x, self.layer.weight, self.layer.bias)
        return out if self.norm is None else self._normalise(out)

    def _train(self, x: Tensor) -> Tensor:
        if self.norm is None or self.freeze_norm:
            folded, bias = self.folded()
            params = self.grid.params(folded)
            return self._multiply(x, self.grid(folded, params), self._rounded_bias(bias, params))
        gain = self._by_output(self._gain(safe=True).detach())
        folded = self.layer.weight * gain
        rounded = self.grid(folded, self.grid.params(folded)) / gain
        return self._normalise(self._multiply(x, rounded, self.layer.bias))

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
        weight, bias = self.layer.weight, self.layer.bias
        norm = self.norm
        if norm is None or norm.running_mean is None:
            return weight, bias
        gain = self._gain()
        shift = -norm.running_mean if bias is None else bias - norm.running_mean
        offset = 0.0 if norm.bias is None else norm.bias
        return weight * self._by_output(gain), shift * gain + offset

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
        weight, bias = self.folded()
        params = self.grid.params(weight)
        zero_point = params.zero_point
        if zero_point.dim():
            zero_point = self._by_output(zero_point)
        held = LayerIntegers(
            (quantize(weight, params) - zero_point).long(),
            self._bias_integers(bias, params) if bias is not None and self.bias_bits else None,
            self._along_channels(self._scales(params)),
        )
        if not self.training:
            self._integers = held
        return held

    @property
    def has_float_bias(self) -> bool:
        """Whether a bias is added in float (`bias_bits` 0), which integers cannot follow."""
        return not self.bias_bits and (self.norm is not None or self.layer.bias is not None)

    def _bias_integers(self, bias: Tensor, params: QuantParams) -> Tensor:
        limit = 2 ** (self.bias_bits - 1) - 1
        return torch.round(bias.double() / self._scales(params)).clamp_(-limit, limit).long()

    def _rounded_bias(self, bias: Tensor | None, params: QuantParams) -> Tensor | None:
        """The bias on its grid, with a gradient straight through."""
        if bias is None or not self.bias_bits:
            return bias
        with torch.no_grad():
            whole = self._bias_integers(bias, params)
            rounded = (whole * self._scales(params)).to(bias.dtype)
        return bias + (rounded - bias).detach()

    def _scales(self, params: QuantParams) -> Tensor:
        """Scale of the sums per output channel: that of the input times that of the weight."""
        scale = params.scale.double() * self.source.step()
        return scale.expand(self.layer.weight.shape[0])

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
    """

    def __init__(self, grid: ActivationGrid, dyadic: bool) -> None:
        super().__init__()
        self.grid, self.dyadic = grid, dyadic
        self.enabled = True
        self.origin: Origin | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same, on the grid."""
        if not self.enabled:
            return x
        if self.training:
            out: Tensor = self.grid(x)
            return out
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
        return self.grid.scale.detach().double()

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
        if not self.enabled:
            return self.join(parts)
        if self.training:
            out: Tensor = self.grid(self.join(parts))
            return out
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
