"""Where the scales of weights and activations come from: ranges, or learned steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from ompq.errors import OmpqError
from ompq.quantizers import (
    QuantParams,
    fake_quantize,
    learned_step_quantize,
    lp_scale,
    round_to,
    some_values,
)

_SMALLEST_SCALE = 1e-12
# An activation whose whole range is smaller than this is dead, and any scale will do.
_DEAD_RANGE = 1e-8


@dataclass(frozen=True)
class RangeRule:
    """How ranges become scales.

    Attributes:
        per_channel: one weight scale per output channel; else one per layer.
        weight_percentile: of |w| that a weight's range covers, in per cent; 0 for all of it.
        act_percentile: of the activations' values that their range covers; 0 for all of it.
        momentum: of the activations' moving ranges; −1 for the widest seen so far.
        asymmetric: activations of 8 bits are asymmetric too, as narrower ones are.
    """

    per_channel: bool = True
    weight_percentile: float = 0.0
    act_percentile: float = 0.0
    momentum: float = 0.95
    asymmetric: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.momentum <= 1 or self.momentum == -1):
            raise OmpqError(
                f"--act_range_momentum is {self.momentum}; it is a share from 0 to 1, or -1"
            )
        for option, value in (
            ("--act_percentile", self.act_percentile),
            ("--weight_percentile", self.weight_percentile),
        ):
            if not 0 <= value <= 100:
                raise OmpqError(f"{option} is {value}; it lies between 0 and 100 per cent")


class WeightGrid(nn.Module):
    """Fake-quantizes a layer's weight on a symmetric grid that its range decides (HAWQ-V3).

    Integers run from −(2^(b−1) − 1) to 2^(b−1) − 1, which stands for the largest |w|.
    """

    def __init__(self, bits: int, rule: RangeRule) -> None:
        super().__init__()
        self.bits, self.rule = bits, rule
        self.low, self.high = 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1

    @property
    def follows_channels(self) -> bool:
        """Whether a channel times g has the channel's integers, or their opposites, for all g."""
        return self.rule.per_channel

    @torch.no_grad()
    def params(self, weight: Tensor) -> QuantParams:
        """Scale (one per channel, or a scalar) and zero point for `weight` (channels × …)."""
        rows = weight.detach().flatten(1 if self.rule.per_channel else 0)
        rows = rows if self.rule.per_channel else rows[None]
        if self.rule.weight_percentile:
            rank = _rank(self.rule.weight_percentile, rows.shape[1])
            largest = rows.abs().kthvalue(rank, dim=1).values
        else:
            low, high = torch.aminmax(rows, dim=1)
            largest = torch.maximum(-low, high)
        scale = (largest / self.high).clamp_min_(_SMALLEST_SCALE)
        scale = scale if self.rule.per_channel else scale[0]
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
        return QuantParams(scale, zero_point, self.low, self.high)

    def forward(self, weight: Tensor, params: QuantParams) -> Tensor:
        """channels × … → the same, on the grid of `params`; gradients pass straight through."""
        if self.rule.weight_percentile:
            return fake_quantize(weight, params)
        # The range covers every weight: nothing is clipped.
        scale = params.scale
        shape = (-1,) + (1,) * (weight.dim() - 1)
        return round_to(weight, scale.view(shape) if scale.dim() else scale)


class FixedWeightGrid(nn.Module):
    """The same on a grid that was decided before (by post-training quantization)."""

    scale: Tensor
    zero_point: Tensor
    follows_channels = False

    def __init__(self, params: QuantParams) -> None:
        super().__init__()
        self.low, self.high = params.low, params.high
        self.bits = (params.high - params.low).bit_length()
        self.register_buffer("scale", params.scale.clone())
        self.register_buffer("zero_point", params.zero_point.clone())

    def params(self, weight: Tensor) -> QuantParams:
        """Of any weight."""
        return QuantParams(self.scale, self.zero_point, self.low, self.high)

    def forward(self, weight: Tensor, params: QuantParams) -> Tensor:
        """channels × … → the same, on the grid of `params`; gradients pass straight through."""
        return fake_quantize(weight, params)


class LearnedWeightGrid(FixedWeightGrid):
    """The same with a step size that is learned (LSQ, arXiv:1902.08153)."""

    def __init__(self, params: QuantParams) -> None:
        super().__init__(params)
        del self.scale
        self.scale = nn.Parameter(params.scale.clone())

    def params(self, weight: Tensor) -> QuantParams:
        """With the step size as it is now."""
        return QuantParams(_positive(self.scale.detach()), self.zero_point, self.low, self.high)

    def forward(self, weight: Tensor, params: QuantParams) -> Tensor:
        """channels × … → the same, on the grid."""
        shape = (-1,) + (1,) * (weight.dim() - 1) if self.scale.dim() else ()
        count = weight.numel() / max(1, self.scale.numel())
        scale = _slowed(_positive(self.scale), count, self.high).view(shape)
        zero_point = self.zero_point.view(shape)
        return learned_step_quantize(weight, scale, zero_point, self.low, self.high)


def learned_grid(weight: Tensor, bits: int, per_channel: bool) -> LearnedWeightGrid:
    """A learned grid that starts where the L_2.4 error of `weight` is least."""
    return LearnedWeightGrid(lp_scale(weight, bits, symmetric=True, per_channel=per_channel))


class ActivationGrid(nn.Module):
    """Scale and zero point of one activation, from the moving range of what passed in training.

    Symmetric at 8 bits and more (unsigned where no value is negative), asymmetric below.
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

    @torch.no_grad()
    def observe(self, x: Tensor, clip: tuple[float, float] | None = None) -> None:
        """Take a batch, clipped, into the range (of all ranks), and the scale from that."""
        low, high = self._range(x)
        if clip is not None:
            low, high = low.clamp(*clip), high.clamp(*clip)
        if distributed.is_available() and distributed.is_initialized():
            both = torch.stack([-low, high])
            distributed.all_reduce(both, distributed.ReduceOp.MAX)
            low, high = -both[0], both[1]
        momentum = self.rule.momentum
        fresh = self.minimum.isinf()
        if momentum < 0:
            self.minimum.copy_(torch.minimum(self.minimum, low))
            self.maximum.copy_(torch.maximum(self.maximum, high))
        else:
            self.minimum.copy_(torch.where(fresh, low, self.minimum.lerp(low, 1 - momentum)))
            self.maximum.copy_(torch.where(fresh, high, self.maximum.lerp(high, 1 - momentum)))
        self._decide()

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.rule.act_percentile:
            low, high = torch.aminmax(x.detach())
            return low.float(), high.float()
        flat = some_values(x.detach().float())
        rank = _rank(self.rule.act_percentile, flat.numel())
        return flat.kthvalue(flat.numel() + 1 - rank).values, flat.kthvalue(rank).values

    def _decide(self) -> None:
        low, high = self.minimum.clamp_max(0), self.maximum.clamp_min(0)
        symmetric = self.bits >= 8 and not self.rule.asymmetric
        signed_span = torch.maximum(-low, high) / (2 ** (self.bits - 1) - 1)
        span = (high - low) / (2**self.bits - 1)
        scale = torch.where((low < 0) & symmetric, signed_span, span)
        self.scale.copy_(torch.where(high - low < _DEAD_RANGE, 1.0, scale))
        start = torch.round(low / self.scale).clamp(-(2**self.bits - 1), 0)
        signed_start = torch.full_like(start, -(2 ** (self.bits - 1)))
        first = torch.where((low < 0) & symmetric, signed_start, start)
        # Integers are stored from −2^(b−1) on, whatever value stands for zero.
        self.zero_point.copy_((self.low - first).int())

    def forward(self, x: Tensor, clip: tuple[float, float] | None = None) -> Tensor:
        """Any shape → the same, on the grid; while observing, the range follows.

        A clip to values not below 0 is part of the grid then: it begins at 0 and ends within.
        """
        if self.observing:
            self.observe(x, clip)
        elif clip is not None:
            x = x.clamp(*clip)
        params = QuantParams(self.scale, self.zero_point, self.low, self.high)
        return fake_quantize(x.float(), params)

    def step(self) -> Tensor:
        """The scale that is in force, without a gradient."""
        return self.scale.detach()

    @torch.no_grad()
    def set(self, params: QuantParams) -> None:
        """Take over a grid, and keep it."""
        self.scale.copy_(params.scale)
        # What matters is how far the range reaches on either side of zero.
        self.low, self.high = params.low, params.high
        self.zero_point.copy_(params.zero_point)
        self.observing = False


class LearnedActivationGrid(ActivationGrid):
    """The same with a step size that is learned (LSQ), once a first range has been seen."""

    def __init__(self, bits: int, rule: RangeRule) -> None:
        super().__init__(bits, rule)
        del self.scale
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor, clip: tuple[float, float] | None = None) -> Tensor:
        """Any shape → the same, on the grid."""
        if clip is not None:
            x = x.clamp(*clip)
        if self.observing:
            self.observe(x)
        scale = _slowed(_positive(self.scale), x[0].numel(), 2**self.bits - 1)
        return learned_step_quantize(x.float(), scale, self.zero_point, self.low, self.high)

    def step(self) -> Tensor:
        """The scale that is in force, without a gradient."""
        return _positive(self.scale.detach())


def _positive(scale: Tensor) -> Tensor:
    """What a learned scale stands for, should a step of the optimizer have taken it below zero."""
    return scale.abs().clamp_min(_SMALLEST_SCALE)


def _slowed(scale: Tensor, count: float, levels: int) -> Tensor:
    """`scale`, its gradient divided by √(count · levels) (LSQ, section 2.2)."""
    factor = (count * levels) ** -0.5
    return (scale - scale * factor).detach() + scale * factor


def _rank(percentile: float, count: int) -> int:
    """Rank among `count` values, from 1, that a percentile means."""
    return min(count, max(1, round(percentile / 100 * count)))
