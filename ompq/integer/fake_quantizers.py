"""Fake quantizers of weights and activations: scales that follow ranges, or are learned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import hardtanh

from ompq.errors import OmpqError
from ompq.fields import settle_fields
from ompq.quantizers import (
    QuantParams,
    fake_quantize,
    fit_activation_scale,
    learned_step_quantize,
    round_to,
    sample_values,
)

SMALLEST_SCALE = 1e-12
# An activation whose whole range is smaller than this is dead, and any scale will do.
_DEAD_RANGE = 1e-8
# Bounds that ReLU clips to.
_RECTIFIED = (0.0, float("inf"))
# Stands for infinity, which masks are made of.
INFINITE = 1e4


def limit_infinity(x: Tensor) -> Tensor:
    """Put large numbers in the place of infinite ones; NaN stays."""
    return torch.nan_to_num(x, nan=torch.nan, posinf=INFINITE, neginf=-INFINITE)


@dataclass(frozen=True)
class RangeRule:
    """Rule by which the ranges of weights and activations become scales.

    Attributes:
        per_channel: Whether a weight has one scale per output channel, rather than one in all.
        weight_percentile: Percentile of |w| that a weight's range covers; 0 for the whole range.
        act_percentile: Percentile of an activation's values that its range covers; 0 for the
            whole range.
        act_range_momentum: Momentum of the activations' moving ranges; −1 for the widest range
            seen so far.
        asymmetric: Whether activations of 8 bits are asymmetric, as narrower ones always are.

    Raises:
        OmpqError: A momentum or a percentile is out of its range.
    """

    per_channel: bool = True
    weight_percentile: float = 0.0
    act_percentile: float = 0.0
    act_range_momentum: float = 0.95
    asymmetric: bool = False

    def __post_init__(self) -> None:
        settle_fields(self)
        momentum = self.act_range_momentum
        if not (0 <= momentum <= 1 or momentum == -1):
            raise OmpqError(f"`act_range_momentum` is {momentum}; it is a share from 0 to 1, or -1")
        for name in ("act_percentile", "weight_percentile"):
            value = getattr(self, name)
            if not 0 <= value <= 100:
                raise OmpqError(f"`{name}` is {value}; it lies between 0 and 100 per cent")


class WeightFakeQuantizer(nn.Module):
    """Symmetric fake quantizer of a weight, whose scale follows the weight's range (HAWQ-V3).

    Integers run from −(2^(b−1) − 1) to 2^(b−1) − 1, which stands for the largest |w|.

    Args:
        bits: Width b of the integers.
        rule: Rule by which the range becomes a scale.
    """

    def __init__(self, bits: int, rule: RangeRule) -> None:
        super().__init__()
        self.bits, self.rule = bits, rule
        self.low, self.high = 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1

    @property
    def follows_channels(self) -> bool:
        """Tell whether a channel times any factor keeps its integers, or has their opposites."""
        return self.rule.per_channel

    @torch.no_grad()
    def compute_params(self, weight: Tensor) -> QuantParams:
        """Return scale (one per channel, or a scalar) and zero point for a weight (channels × …).

        >>> fake_quantizer = WeightFakeQuantizer(3, RangeRule())
        >>> fake_quantizer.compute_params(torch.tensor([[3.0, -1.0], [0.5, -6.0]])).scale
        tensor([1., 2.])
        """
        rows = weight.detach().flatten(1 if self.rule.per_channel else 0)
        rows = rows if self.rule.per_channel else rows[None]
        if self.rule.weight_percentile:
            rank = _rank_percentile(self.rule.weight_percentile, rows.shape[1])
            largest = rows.abs().kthvalue(rank, dim=1).values
        else:
            # Ten times as fast on the CPU as both by one operator.
            largest = torch.maximum(-rows.amin(dim=1), rows.amax(dim=1))
        scale = (largest / self.high).clamp_min_(SMALLEST_SCALE)
        scale = scale if self.rule.per_channel else scale[0]
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
        return QuantParams(scale, zero_point, self.low, self.high)

    def forward(self, weight: Tensor, params: QuantParams, sign: Tensor | None = None) -> Tensor:
        """Fake-quantize a weight (channels × …); gradients pass straight through.

        Opposite weights have opposite integers, whatever the sign that they are rounded with.
        """
        if self.rule.weight_percentile:
            return fake_quantize(weight, params)
        # The range covers the whole weight: nothing is clipped, and so rounding is all there is.
        scale = params.scale
        shape = (-1,) + (1,) * (weight.dim() - 1)
        return round_to(weight, scale.view(shape) if scale.dim() else scale)


class FixedWeightFakeQuantizer(nn.Module):
    """Fake quantizer of a weight with a scale and zero point that training does not change.

    Args:
        params: Scale, zero point and range, from post-training quantization or a file.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, params: QuantParams) -> None:
        super().__init__()
        self.is_symmetric = not bool(params.zero_point.any())
        self.low, self.high = params.low, params.high
        self.bits = (params.high - params.low).bit_length()
        self.register_buffer("scale", params.scale.clone())
        self.register_buffer("zero_point", params.zero_point.clone())

    @property
    def follows_channels(self) -> bool:
        """Tell that the scale stays, whatever a channel is multiplied by."""
        return False

    def compute_params(self, weight: Tensor) -> QuantParams:
        """Return the fixed scale and zero point, whatever the weight."""
        return QuantParams(self.scale, self.zero_point, self.low, self.high)

    def forward(self, weight: Tensor, params: QuantParams, sign: Tensor | None = None) -> Tensor:
        """Fake-quantize a weight (channels × …); gradients pass straight through."""
        return fake_quantize(weight, params)


class LearnedWeightFakeQuantizer(FixedWeightFakeQuantizer):
    """Fake quantizer of a weight with a step size that is learned (LSQ, arXiv:1902.08153).

    Args:
        params: Scale that learning starts from, with zero point and range, which stay.
    """

    def __init__(self, params: QuantParams) -> None:
        super().__init__(params)
        del self.scale
        self.scale = nn.Parameter(params.scale.clone())

    @property
    def follows_channels(self) -> bool:
        """Tell whether each channel has a step size, which folding multiplies, and no zero point.

        What is rounded is the weight itself then. Folded with a batch norm's running statistics, it
        would be another one after every batch, and go back and forth between integers.
        """
        return bool(self.scale.dim()) and self.is_symmetric

    def compute_params(self, weight: Tensor) -> QuantParams:
        """Return the scale as learned so far, whatever the weight, and the zero point."""
        scale = _make_positive(self.scale.detach())
        return QuantParams(scale, self.zero_point, self.low, self.high)

    def forward(self, weight: Tensor, params: QuantParams, sign: Tensor | None = None) -> Tensor:
        """Fake-quantize a weight (channels × …), with gradients for it and for the scale.

        Channels are multiplied before rounding and after it by `sign`, 1 or −1 for each.
        """
        shape = (-1,) + (1,) * (weight.dim() - 1) if self.scale.dim() else ()
        count = weight.numel() / max(1, self.scale.numel())
        learned = _make_positive(self.scale)
        # A scale that the layer had to raise is not the learned one, and teaches it nothing.
        scale = torch.where(params.scale > learned, params.scale, learned).view(shape)
        scale = scale if sign is None else scale * sign
        zero_point = self.zero_point.view(shape)
        factor = _slow_gradient(count, self.high)
        return learned_step_quantize(
            weight, scale, zero_point, self.low, self.high, gradient_factor=factor
        )


class ActivationFakeQuantizer(nn.Module):
    """Fake quantizer of an activation, whose scale follows the moving range of its values.

    Symmetric at 8 bits and more (unsigned where no value is negative), asymmetric below. Where it
    quantizes several values, each has a range of its own, and the scale covers all of them.

    Args:
        bits: Width of the integers.
        rule: Rule by which the range becomes a scale.
    """

    minimum: Tensor
    maximum: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int, rule: RangeRule) -> None:
        super().__init__()
        self.bits, self.rule = bits, rule
        self.low, self.high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self.observing = True
        self.register_buffer("minimum", torch.tensor(float("inf")))
        self.register_buffer("maximum", torch.tensor(float("-inf")))
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))
        self._places = 0

    def add_place(self) -> int:
        """Add a value that is to be quantized, and return its number, from 0 on."""
        self._places += 1
        if self._places > 1:
            self.minimum = self.minimum.new_full((self._places,), float("inf"))
            self.maximum = self.maximum.new_full((self._places,), float("-inf"))
        return self._places - 1

    @torch.no_grad()
    def observe(self, x: Tensor, clip: tuple[float, float] | None = None, place: int = 0) -> None:
        """Update a range (over all ranks) by a batch, and scale and zero point by the ranges.

        Args:
            x: Batch of values, any shape.
            clip: Bounds to which the values will be clipped.
            place: Number of the value among those that are quantized here.
        """
        low, high = self._measure_range(x)
        if clip is not None:
            low, high = low.clamp(*clip), high.clamp(*clip)
        if distributed.is_available() and distributed.is_initialized():
            # One exchange for both ends: the least value is the greatest of the negated ones.
            both = torch.stack([-low, high])
            distributed.all_reduce(both, distributed.ReduceOp.MAX)
            low, high = -both[0], both[1]
        momentum = self.rule.act_range_momentum
        # Chosen by `where`, not by `if`: a look at the value would wait for the GPU at every step.
        minimum, maximum = self.minimum.view(-1)[place], self.maximum.view(-1)[place]
        fresh = minimum.isinf()
        if momentum < 0:
            minimum.copy_(torch.minimum(minimum, low))
            maximum.copy_(torch.maximum(maximum, high))
        else:
            minimum.copy_(torch.where(fresh, low, minimum.lerp(low, 1 - momentum)))
            maximum.copy_(torch.where(fresh, high, maximum.lerp(high, 1 - momentum)))
        self._update_scale()

    def _measure_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not x.numel():  # a piece that nothing is in; zero is in every range
            return self.minimum.new_zeros(()), self.maximum.new_zeros(())
        if not self.rule.act_percentile:
            low, high = torch.aminmax(x.detach())
            return limit_infinity(low.float()), limit_infinity(high.float())
        flat = sample_values(x.detach().float())
        rank = _rank_percentile(self.rule.act_percentile, flat.numel())
        low, high = (flat.kthvalue(k).values for k in (flat.numel() + 1 - rank, rank))
        return limit_infinity(low), limit_infinity(high)

    def _update_scale(self) -> None:
        # Zero is always within the range, so that padding and ReLU have an exact integer.
        low, high = self.minimum.amin().clamp_max(0), self.maximum.amax().clamp_min(0)
        signed = low < 0 if self.bits >= 8 and not self.rule.asymmetric else None
        span = high - low
        scale = span / (2**self.bits - 1)
        if signed is not None:
            signed_scale = torch.maximum(-low, high) / (2 ** (self.bits - 1) - 1)
            scale = torch.where(signed, signed_scale, scale)
        self.scale.copy_(torch.where(span < _DEAD_RANGE, 1.0, scale))
        first = torch.round(low / self.scale).clamp_(-(2**self.bits - 1), 0)
        if signed is not None:
            first = torch.where(signed, -float(2 ** (self.bits - 1)), first)
        # Integers are stored from −2^(b−1) on, whatever value stands for zero.
        self.zero_point.copy_(self.low - first)

    def forward(self, x: Tensor, clip: tuple[float, float] | None = None, place: int = 0) -> Tensor:
        """Fake-quantize values of any shape; while observing, the range follows them.

        Args:
            x: Values, any shape.
            clip: Bounds to which the values are clipped first. While observing, the range is
                clipped instead, which starts at 0 and ends within the bounds then: what lies
                beyond is clipped by the quantization itself.
            place: Number of the value among those that are quantized here.

        Returns:
            Multiples of the scale, float32, of the shape of `x`.
        """
        if self.observing:
            self.observe(x, clip, place)
        elif clip is not None:
            x = hardtanh(x, *clip)  # a clamp whose gradient is one operator
        params = QuantParams(self.scale, self.zero_point, self.low, self.high)
        return fake_quantize(x.float(), params)

    def get_scale(self) -> Tensor:
        """Return the scale that is in force, without a gradient."""
        return _make_positive(self.scale.detach())

    def compare_ranges(self) -> float:
        """Return how many times further the values of one place reach than those of another."""
        reaches = torch.maximum(-self.minimum, self.maximum).view(-1)
        seen = reaches[reaches.isfinite() & (reaches > 0)]
        return float(seen.max() / seen.min()) if len(seen) else 1.0

    @torch.no_grad()
    def reset(self) -> None:
        """Forget the range seen so far, and observe anew."""
        self.minimum.fill_(float("inf"))
        self.maximum.fill_(float("-inf"))
        self.observing = True

    @torch.no_grad()
    def set(self, params: QuantParams) -> None:
        """Adopt a scale, zero point and range, and observe no more."""
        self.scale.copy_(params.scale)
        # What matters is how far the range reaches on either side of zero.
        self.low, self.high = params.low, params.high
        self.zero_point.copy_(params.zero_point)
        self.observing = False


class LearnedActivationFakeQuantizer(ActivationFakeQuantizer):
    """Fake quantizer of an activation with a learned step size (LSQ), after a first range.

    Args:
        bits: Width of the integers.
        rule: Rule by which the first range becomes a scale.
    """

    def __init__(self, bits: int, rule: RangeRule) -> None:
        super().__init__(bits, rule)
        del self.scale
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor, clip: tuple[float, float] | None = None, place: int = 0) -> Tensor:
        """Fake-quantize values (n × …, clipped first), with gradients for them and the scale."""
        rectified = clip == _RECTIFIED
        if clip is not None and not rectified:
            x = hardtanh(x, *clip)
        if self.observing:
            self.observe(x, clip, place)
        return learned_step_quantize(
            x.float(),
            _make_positive(self.scale),
            self.zero_point,
            self.low,
            self.high,
            rectified=rectified,
            gradient_factor=_slow_gradient(x[0].numel(), 2**self.bits - 1),
        )

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Start learning where the L_2.4 error of some values is least, below the whole range.

        Args:
            values: Values as they are quantized, of any shape; dead ones leave the scale.
        """
        values = limit_infinity(values.float())
        if not values.numel() or values.amax() - values.amin() < _DEAD_RANGE:
            return
        found = fit_activation_scale(values, self.bits)
        self.scale.copy_(found.scale)
        self.zero_point.copy_(found.zero_point + self.low - found.low)


def _make_positive(scale: Tensor) -> Tensor:
    """Return what a learned scale stands for, should the optimizer have taken it below zero."""
    return scale.abs().clamp_min(SMALLEST_SCALE)


def _slow_gradient(count: float, levels: int) -> float:
    """Return what a scale's gradient is multiplied by: 1 / √(count · levels) (LSQ, section 2.2)."""
    return float((count * levels) ** -0.5)


def _rank_percentile(percentile: float, count: int) -> int:
    """Return the rank (from 1) that a percentile has among `count` sorted values.

    >>> _rank_percentile(90, 20), _rank_percentile(99.9, 20)
    (18, 20)
    """
    return min(count, max(1, round(percentile / 100 * count)))
