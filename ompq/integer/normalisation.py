"""Layer norm and its like on integers: integer square root, and integer division."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod, sqrt

import torch
from torch import Tensor
from torch.fx import GraphModule

from ompq.errors import UNSUITED_ERRORS
from ompq.integer.operations import IntegerOperation, Trial, agree, reduce_shape
from ompq.integer.requantization import ScaleSource

# Values are normalised as integers of 16 bits, or fewer where there are many: of any width, the
# sum of their squares has as many bits.
_VALUE_BITS = 16
_FEW_VALUES = 2**14
# Sums of squares, shifted, stay below 2^50: float64 then has their exact integer root.
_ROOT_BITS = 50
# Bits behind the point of normalised values.
_FRACTION_BITS = 10
_REACH = 2**30 - 1
_MOST_VALUES = 2**20
# Large enough that nothing added to a variance matters.
_LARGE = 1e4
_SMALL = (1e-3, 1e-2)


@dataclass(frozen=True)
class Norm:
    """How an operation normalises.

    Attributes:
        dims: Dimensions over which values are normalised together.
        centred: Whether their mean is subtracted.
        eps: What is added to their mean square.
        shape: Shape of the numbers that it multiplies by and adds, which broadcasts to values.
        groups: Groups of channels (dimension 1) that are normalised apart; 0 where channels are
            not grouped. `dims` are those of the value with groups for a dimension of their own.
    """

    dims: tuple[int, ...]
    centred: bool
    eps: float
    shape: tuple[int, ...]
    groups: int = 0

    def normalise(self, x: Tensor, eps: float) -> Tensor:
        """Normalise values, float64, with another `eps`."""
        own = x.shape
        x = self.group(x)
        x = x - x.mean(self.dims, keepdim=True) if self.centred else x
        return (x * torch.rsqrt(x.square().mean(self.dims, keepdim=True) + eps)).reshape(own)

    def group(self, x: Tensor) -> Tensor:
        """Give groups of channels a dimension of their own, if there are any."""
        return x.unflatten(1, (self.groups, -1)) if self.groups else x

    def count(self, size: tuple[int, ...]) -> int:
        """Count the values that are normalised together, of a value of some shape."""
        grouped = self.group(torch.empty(size, device="meta"))
        return prod(grouped.shape[dim] for dim in self.dims)


class IntegerNorm(IntegerOperation):
    """A norm of integers of one scale: (x − mean) / √(mean square + ε) · γ + β.

    Args:
        function: The norm, in float.
        scale_source: Source of the scale of what it reads.
        norm: How it normalises.
        size: Shape of the value for one image.
    """

    bits = 31

    def __init__(
        self,
        function: GraphModule,
        scale_source: ScaleSource,
        norm: Norm,
        size: tuple[int, ...],
    ) -> None:
        super().__init__(function, [scale_source])
        self.norm = norm
        self.count = norm.count(size)
        self._size = size

    @property
    def shift(self) -> int:
        """Return the places by which what is read moves to fill 16 bits: to the left, or right."""
        (source,) = self.scale_sources
        width = source.module.bits + (source.count - 1).bit_length()
        return self._value_bits - width

    @property
    def _value_bits(self) -> int:
        more = max(1, self.count // _FEW_VALUES).bit_length() - 1
        return _VALUE_BITS - (more + 1) // 2

    def write_numbers(self) -> dict[str, Tensor]:
        """Compute the integers of the norm.

        Returns:
            `gain` and `offset` (int64, of the norm's shape), `eps` (added to the sum of squares),
            `root` (bits that the sum of squares is shifted by), `factor` (√count, with fraction
            bits), and `scale`.
        """
        (source,) = self.scale_sources
        step = float(source.get_scale()) * 2.0**-self.shift
        gain, offset = _find_line(Trial.of(self.function), self.norm, self._size)
        if not bool((gain.isfinite() & offset.isfinite()).all()):
            raise ArithmeticError("it multiplies or adds something infinite")
        largest = float((gain.abs() * sqrt(self.count) + offset.abs()).max())
        # Rounding either number may exceed the largest one.
        unit = 2**_FRACTION_BITS * sqrt(self.count)
        scale = torch.tensor(largest / (_REACH - 2 * unit) or 1.0, dtype=torch.float64)
        limit = self.count * 2 ** (2 * self._value_bits)
        # An even number of bits, so that the root is shifted by half of them.
        spare = (_ROOT_BITS - (2 * limit).bit_length()) // 2 * 2
        eps = min(round(self.norm.eps * self.count / step**2), limit)
        factor = round(sqrt(self.count) * 2 ** (_FRACTION_BITS + spare // 2))
        return {
            "gain": torch.round(gain / scale / 2**_FRACTION_BITS).long(),
            "offset": torch.round(offset / scale).long(),
            "eps": torch.tensor(eps),
            "root": torch.tensor(spare),
            "factor": torch.tensor(factor),
            "scale": scale.to(self.device),
        }

    def compute(self, numbers: Mapping[str, Tensor], *whole: Tensor) -> Tensor:
        """Normalise integers, every division rounded to nearest."""
        held = {name: number.to(whole[0].device) for name, number in numbers.items()}
        x = self.norm.group(_move(whole[0], self.shift))
        if self.norm.centred:
            total = x.sum(self.norm.dims, keepdim=True)
            x = x - _divide(total, torch.full_like(total, self.count))
        squares = (x * x).sum(self.norm.dims, keepdim=True) + held["eps"]
        root = torch.sqrt((squares << int(held["root"])).double()).long().clamp_min(1)
        normalised = _divide(x * held["factor"], root).reshape(whole[0].shape)
        return normalised * held["gain"] + held["offset"]


def find_norm(function: GraphModule, shape: tuple[int, ...], images_dim: int | None) -> Norm | None:
    """Find, by trying, how an operation normalises; None where it does anything else.

    Args:
        function: The operation, in float.
        shape: Shape of the value for one image.
        images_dim: Dimension along which the images are; None where that cannot be told.
    """
    if images_dim is None:
        return None
    generator = torch.Generator().manual_seed(0)
    trial = Trial.of(function).vary(generator)
    try:
        if not _ignores_size(trial, shape, generator):
            return None
        for norm in _list_norms(shape, images_dim):
            found = _fit(trial, norm, shape, generator)
            if found is not None:
                return found if found.shape[images_dim] == 1 else None
    except UNSUITED_ERRORS:
        return None
    return None


def _ignores_size(trial: Trial, shape: tuple[int, ...], generator: torch.Generator) -> bool:
    """Tell whether an operation gives the same for large values and for larger ones."""
    x = _LARGE * _draw(shape, generator)
    found = trial.run(x)
    return found.shape == x.shape and agree(trial.run(10 * x), found)


def _list_norms(shape: tuple[int, ...], images_dim: int) -> Iterator[Norm]:
    """List what norms work on: the last dimensions, channels alone, or groups of channels."""
    rank = len(shape)
    candidates = [(tuple(range(first, rank)), 0) for first in range(rank - 1, 0, -1)]
    candidates.append(((1,), 0))
    if rank > 2:
        groups = [count for count in range(2, shape[1]) if shape[1] % count == 0]
        candidates += [(tuple(range(2, rank + 1)), count) for count in groups]
    for dims, count in candidates:
        for centred in (True, False):
            norm = Norm(dims, centred, 0.0, (), count)
            if images_dim not in dims and 1 < norm.count(shape) <= _MOST_VALUES:
                yield norm


def _fit(
    trial: Trial, norm: Norm, shape: tuple[int, ...], generator: torch.Generator
) -> Norm | None:
    """Fit a norm to an operation; None where it computes otherwise."""
    gain, offset = _find_line(trial, norm, shape)
    x = _draw(shape, generator)
    for size in (_LARGE, 100 * _LARGE):
        if not agree(trial.run(size * x), gain * norm.normalise(size * x, 0.0) + offset):
            return None
    eps = _find_eps(trial, norm, (gain, offset), _SMALL[0] * x)
    for size in _SMALL:
        other = size * _draw(shape, generator)
        if not agree(trial.run(other), gain * norm.normalise(other, eps) + offset):
            return None
    return replace(norm, eps=eps, shape=reduce_shape(gain, offset))


def _draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _find_line(trial: Trial, norm: Norm, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Find what a norm multiplies by and adds, float64, of the norm's shape or of the value's."""
    x = _LARGE * _draw(shape, torch.Generator().manual_seed(1))
    above, below = trial.run(x), trial.run(-x)
    gain, offset = (above - below) / 2 / norm.normalise(x, 0.0), (above + below) / 2
    for dim, size in enumerate(norm.shape):
        if size == 1:
            gain, offset = (t.narrow(dim, 0, 1) for t in (gain, offset))
    return gain, offset


def _find_eps(trial: Trial, norm: Norm, line: tuple[Tensor, Tensor], x: Tensor) -> float:
    """Find what is added to the mean square, by small values."""
    gain, offset = line
    normalised = norm.group((trial.run(x) - offset) / gain)
    x = norm.group(x)
    centred = x - x.mean(norm.dims, keepdim=True) if norm.centred else x
    found = (centred / normalised).square() - centred.square().mean(norm.dims, keepdim=True)
    # Three digits: what is left of rounding must not differ between machines.
    return float(f"{max(0.0, float(found.median())):.3g}")


def _move(x: Tensor, places: int) -> Tensor:
    """Shift integers to the left, or to the right with rounding to nearest."""
    return x << places if places >= 0 else (x + (1 << (-places - 1))) >> -places


def _divide(x: Tensor, by: Tensor) -> Tensor:
    """Divide integers, rounded to nearest, halves upwards; the divisor is positive."""
    return torch.div(2 * x + by, 2 * by, rounding_mode="floor")
