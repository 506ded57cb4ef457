"""Operations that work value by value: looked up in tables, or multiplied and added to.

Which operations these are is found by trying them, whatever their names: a change of one value
changes that value's result alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.fx import GraphModule

from ompq.errors import UNSUITED_ERRORS
from ompq.integer.fake_quantizers import limit_infinity
from ompq.integer.operations import (
    NARROW_BITS,
    IntegerOperation,
    Trial,
    agree,
    reduce_shape,
)
from ompq.integer.requantization import ScaleSource

# Entries of tables: finer than anything that is read of them.
_TABLE_BITS = 16
# What a product and a sum of values of 8 bits reach: below 31 bits, sign included.
_AFFINE_REACH = 2**30 - 1
# More than this of every dimension is not looked at, where nothing depends on the place.
_PROBED_SIZE = 8
_LEVELS = 2**NARROW_BITS
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Nature:
    """How an operation works value by value.

    Attributes:
        shape: Shape, of the value's rank, with 1 for every dimension along which nothing changes.
        is_affine: Whether it multiplies by numbers, and adds numbers, of that shape.
    """

    shape: tuple[int, ...]
    is_affine: bool


class LookupTable(IntegerOperation):
    """A function of one value of at most 8 bits, as a table of its results in 16 bits.

    Args:
        function: The function, in float.
        scale_source: Source of the scale of what it reads.
        nature: How it works; a dimension of several channels has a table for each.
    """

    bits = _TABLE_BITS

    def __init__(self, function: GraphModule, scale_source: ScaleSource, nature: Nature) -> None:
        super().__init__(function, [scale_source])
        self.nature = nature

    def forward(self, *values: Tensor) -> Tensor:
        """Compute the function; where it is infinitely steep (a root at 0) no gradient passes."""
        (x,) = values
        if self.training and x.requires_grad:
            x = x.view_as(x)
            x.register_hook(lambda grad: torch.nan_to_num(grad, 0.0, 0.0, 0.0))
        return super().forward(x)

    @property
    def levels(self) -> range:
        """Return the integers that it may read."""
        low, high = self.scale_sources[0].module.reach  # type: ignore[attr-defined]
        return range(low, high + 1)

    def write_numbers(self) -> dict[str, Tensor]:
        """Compute `table` (int64, channels × levels), `first` (the first level), and `scale`."""
        levels = torch.arange(self.levels.start, self.levels.stop, dtype=torch.float64)
        values = levels * self.scale_sources[0].get_scale().cpu()
        results = _look_up_all(Trial.of(self.function), values, self.nature)
        results = _fill_gaps(results)
        largest = float(results.abs().max())
        scale = torch.tensor(largest / (2 ** (_TABLE_BITS - 1) - 1) or 1.0, dtype=torch.float64)
        return {
            "table": torch.round(results / scale).long(),
            "first": torch.tensor(self.levels.start),
            "scale": scale.to(self.device),
        }

    def compute(self, numbers: Mapping[str, Tensor], *whole: Tensor) -> Tensor:
        """Look up integers, channel by channel where there are several tables."""
        (x,) = whole
        table = numbers["table"].to(x.device)
        places = x - int(numbers["first"])
        if len(table) == 1:
            return table[0][places]
        channels = torch.arange(len(table), device=x.device).view(self.nature.shape)
        return table[channels, places]


class IntegerAffine(IntegerOperation):
    """A value of at most 8 bits times numbers, plus numbers: x · m + b, of one scale.

    Args:
        function: The function, in float.
        scale_source: Source of the scale of what it reads.
        nature: How it works.
    """

    bits = 31

    def __init__(self, function: GraphModule, scale_source: ScaleSource, nature: Nature) -> None:
        super().__init__(function, [scale_source])
        self.nature = nature

    def write_numbers(self) -> dict[str, Tensor]:
        """Compute `multiplier` and `offset` (int64, of the nature's shape), and `scale`."""
        (source,) = self.scale_sources
        gain, offset = _find_line(Trial.of(self.function), self.nature.shape)
        if not bool((gain.isfinite() & offset.isfinite()).all()):
            raise ArithmeticError("it multiplies or adds something infinite")
        gain = gain * source.get_scale().cpu()
        reach = source.module.largest  # type: ignore[attr-defined]
        largest = float((gain.abs() * reach + offset.abs()).max())
        # Rounding either number may exceed the largest one.
        scale = torch.tensor(largest / (_AFFINE_REACH - reach - 1) or 1.0, dtype=torch.float64)
        return {
            "multiplier": torch.round(gain / scale).long(),
            "offset": torch.round(offset / scale).long(),
            "scale": scale.to(self.device),
        }

    def compute(self, numbers: Mapping[str, Tensor], *whole: Tensor) -> Tensor:
        """Multiply integers, and add to them."""
        (x,) = whole
        return x * numbers["multiplier"].to(x.device) + numbers["offset"].to(x.device)


def find_nature(
    function: GraphModule, shape: tuple[int, ...], images_dim: int | None
) -> Nature | None:
    """Find, by trying, how an operation of one value works value by value.

    Its parameters and buffers are varied for that: what training may make of them does not matter.

    Args:
        function: The operation, in float.
        shape: Shape of the value for one image.
        images_dim: Dimension along which the images are; None where that cannot be told.

    Returns:
        Its nature; None where it works otherwise, or differently for values along several
        dimensions without being a line.
    """
    generator = torch.Generator().manual_seed(0)
    trial = Trial.of(function).vary(generator)
    probed = shape
    if not trial.tensors:
        probed = tuple(min(size, _PROBED_SIZE) for size in shape)
    try:
        found = _find_nature(trial, probed, images_dim, generator)
        if found is None or probed == shape or prod(found.shape) == 1:
            return found
        # What differs from place to place (`tril`) is looked at in its own size.
        return _find_nature(trial, shape, images_dim, generator)
    except UNSUITED_ERRORS:
        return None


def _find_nature(
    trial: Trial, shape: tuple[int, ...], images_dim: int | None, generator: torch.Generator
) -> Nature | None:
    x = _draw(shape, generator)
    y = limit_infinity(trial.run(x))
    if y.shape != x.shape or not y.is_floating_point() or not _is_local(trial, x, y, generator):
        return None
    gain, offset = _find_line(trial, shape)
    size = x.abs() * gain.abs() + offset.abs() + 1e-6
    if bool(((y - (gain * x + offset)).abs() <= _TOLERANCE * size).all()):
        nature = Nature(reduce_shape(gain, offset), is_affine=True)
        if prod(nature.shape) > 1:
            found = _find_line(trial, nature.shape)
            same = all(map(agree, found, (gain, offset)))
            along_images = images_dim is None or nature.shape[images_dim] > 1
            return nature if same and not along_images else None
    # Zero is among what is read, whatever the scale.
    if not bool(trial.run(torch.zeros_like(x)).isfinite().all()):
        return None
    dims = [dim for dim, size in enumerate(shape) if size > 1 and dim != images_dim]
    for dim in (None, *dims[:1], *dims[-1:]):
        nature = Nature(tuple(size if k == dim else 1 for k, size in enumerate(shape)), False)
        if _is_looked_up(trial, shape, nature, generator):
            return nature
    return None


def _draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw values of all magnitudes: near zero, and far beyond what a clip would let pass."""
    exponents = torch.rand(shape, generator=generator, dtype=torch.float64) * 5 - 3
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 10**exponents


def _is_local(trial: Trial, x: Tensor, y: Tensor, generator: torch.Generator) -> bool:
    """Tell whether values keep their results when others change."""
    if x.numel() == 1:
        return True
    kept = torch.rand(x.shape, generator=generator) < 0.5
    kept.view(-1)[0], kept.view(-1)[-1] = True, False
    other = limit_infinity(trial.run(torch.where(kept, x, _draw(tuple(x.shape), generator))))
    return agree(other[kept], y[kept])


def _is_looked_up(
    trial: Trial, shape: tuple[int, ...], nature: Nature, generator: torch.Generator
) -> bool:
    """Tell whether tables, of one dimension's channels or of all, give what an operation gives."""
    levels = _draw((_LEVELS,), generator)
    try:
        table = _look_up_all(trial, levels, nature)
    except UNSUITED_ERRORS:
        return False
    places = torch.randint(0, _LEVELS, shape, generator=generator)
    channels = torch.arange(len(table)).view(nature.shape)
    return agree(trial.run(levels[places]), table[channels, places])


def _look_up_all(trial: Trial, values: Tensor, nature: Nature) -> Tensor:
    """Compute an operation, in float64, of some values: channels × values.

    Args:
        trial: The operation.
        values: The values, float64, on the CPU.
        nature: Its nature; the values lie along another dimension than its channels.
    """
    rank = len(nature.shape)
    dim = next((k for k, size in enumerate(nature.shape) if size > 1), None)
    along = 0 if dim != 0 else rank - 1
    spread = values.view(tuple(-1 if k == along else 1 for k in range(rank)))
    given = spread.expand(tuple(-1 if k == along else s for k, s in enumerate(nature.shape)))
    results = trial.run(given.contiguous()).movedim(along, -1)
    return results.reshape(prod(nature.shape), len(values))


def _fill_gaps(results: Tensor) -> Tensor:
    """Put, where a function gives no number, what it gives for the nearest value that it knows.

    Args:
        results: Results of ascending values along the last dimension.

    Raises:
        ArithmeticError: It gives none at all.
    """
    finite = results.isfinite()
    if bool(finite.all()):
        return results
    if not bool(finite.any(-1).all()):
        raise ArithmeticError("it gives no number for any of the values that it may read")
    places = torch.arange(results.shape[-1])
    distances = (places[:, None] - places).abs()
    far = torch.where(finite[:, None], distances, results.shape[-1])
    return results.gather(-1, far.argmin(-1))


def _find_line(trial: Trial, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Find what an operation multiplies by and adds, float64, where it is a line.

    What a mask makes infinite, whatever the value, is a large number.
    """
    zeros = torch.zeros(shape, dtype=torch.float64)
    offset = limit_infinity(trial.run(zeros))
    return limit_infinity(trial.run(zeros + 1)) - offset, offset
