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
from torch.nn.functional import batch_norm, conv2d, linear, pad
from torch.nn.modules.batchnorm import _BatchNorm

from ompq.fixed_point.dyadic import Dyadic
from ompq.fixed_point.grids import ActivationGrid, FixedWeightGrid, WeightGrid
from ompq.quantizers import quantize

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
            return self._multiply(x, self.grid(folded), self._rounded_bias(bias))
        gain = self._gain(safe=True).detach()
        shape = self._by_output(gain)
        rounded = self.grid(self.layer.weight * shape) / shape
        return self._normalise(self._multiply(x, rounded, self.layer.bias))

    @torch.no_grad()
    def _evaluate(self, x: Tensor) -> Tensor:
        integers, bias = self.integers()
        zeroed = self.centred(integers)
        whole = torch.round(x.double() / self.source.step())
        exact = torch.float32 if x.device.type == "cpu" and self._fits(zeroed) else torch.float64
        sums = self._multiply(whole.to(exact), zeroed.to(exact), None).double()
        if bias is not None:
            sums += self._along_channels(bias.double())
        values = sums * self.step()
        if self.has_float_bias:
            values += self._along_channels(self.folded()[1])  # type: ignore[arg-type]
        return values

    def _fits(self, weight: Tensor) -> bool:
        reach = max(abs(bound) for bound in self.source.reach)
        return int(weight.abs().flatten(1).sum(dim=1).max()) * reach < _EXACT_IN_FLOAT32

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
        if self.norm is None:
            return x
        if self.freeze_norm and self.norm.training:
            n = self.norm
            return batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, False, 0.0, n.eps)
        out: Tensor = self.norm(x)
        return out

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
    def integers(self) -> tuple[Tensor, Tensor | None]:
        """The weight's integers (int32, zero point included) and the bias's (int64)."""
        weight, bias = self.folded()
        whole = quantize(weight, self.grid.params(weight))
        return whole, None if bias is None or not self.bias_bits else self._bias_integers(bias)

    @property
    def has_float_bias(self) -> bool:
        """Whether a bias is added in float (`bias_bits` 0), which integers cannot follow."""
        return not self.bias_bits and (self.norm is not None or self.layer.bias is not None)

    def centred(self, integers: Tensor) -> Tensor:
        """Integers less their zero point: what multiplies."""
        zero_point = self.grid.params(self.layer.weight).zero_point
        return integers - (self._by_output(zero_point) if zero_point.dim() else zero_point)

    def _bias_integers(self, bias: Tensor) -> Tensor:
        limit = 2 ** (self.bias_bits - 1) - 1
        return torch.round(bias.double() / self._scales()).clamp_(-limit, limit).long()

    def _rounded_bias(self, bias: Tensor | None) -> Tensor | None:
        """The bias on its grid, with a gradient straight through."""
        if bias is None or not self.bias_bits:
            return bias
        with torch.no_grad():
            scales = self._scales()
            rounded = (self._bias_integers(bias) * scales).to(bias.dtype)
        return bias + (rounded - bias).detach()

    def _scales(self) -> Tensor:
        """Scale of the sums per output channel: that of the input times that of the weight."""
        scale = self.grid.params(self.folded()[0].detach()).scale.double()
        return (scale * self.source.step()).expand(self.layer.weight.shape[0])

    @torch.no_grad()
    def step(self) -> Tensor:
        """The output grid's scale, float64."""
        return self._along_channels(self._scales())

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
