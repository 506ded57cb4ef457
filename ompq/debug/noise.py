"""Signal and noise of values beside those that they stand for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Noise:
    """Squares of a signal and of what differs from it, added up over batches.

    Attributes:
        signal: Sum of the squares of the exact values.
        noise: Sum of the squares of the differences.
        count: Number of values.
    """

    signal: float = 0.0
    noise: float = 0.0
    count: int = 0

    def add(self, exact: Tensor, found: Tensor) -> None:
        """Add values of any shape, both of the same."""
        exact, found = exact.double(), found.double()
        self.signal += float(exact.square().sum())
        self.noise += float((found - exact).square().sum())
        self.count += exact.numel()

    @property
    def decibels(self) -> float | None:
        """Return 10 · log10(signal / noise); infinite without noise, None without values.

        >>> noise = Noise()
        >>> noise.add(torch.tensor([10.0, 0.0]), torch.tensor([9.0, 0.0]))
        >>> noise.decibels
        20.0
        """
        if not self.count:
            return None
        if not self.noise:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


def count_dead_channels(exact: Tensor, integers: Tensor) -> int:
    """Count the output channels whose integers are all 0, though their weights are not.

    >>> count_dead_channels(torch.tensor([[0.1, 0.0], [0.0, 0.0]]), torch.zeros(2, 2))
    1

    Args:
        exact: Float weight, channels × ….
        integers: Its integers, the zero point subtracted, of the same shape.
    """
    lost = ~integers.flatten(1).any(dim=1)
    return int((lost & exact.flatten(1).any(dim=1)).sum())


def measure_clipped_share(x: Tensor, scale: Tensor, zero_point: int, low: int, high: int) -> float:
    """Measure the share of values that lie beyond the range of a quantizer.

    >>> measure_clipped_share(torch.tensor([-1.0, 0.5, 1.0, 9.0]), torch.tensor(1.0), 0, 0, 7)
    0.5

    Args:
        x: Values of any shape.
        scale: Scale of the quantizer, a scalar.
        zero_point: Its zero point.
        low: Its smallest integer.
        high: Its largest integer.
    """
    whole = torch.round(x.double() / scale.double().to(x.device)) + zero_point
    return float(((whole < low) | (whole > high)).double().mean())
