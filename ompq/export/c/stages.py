"""What is done to results before they are stored: rescaling and clamping, merged where possible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from ompq.export.c.program import Channels, Computation, Factor, Stage

_LEAST, _LARGEST = -(2**31), 2**31 - 1


def read_factor(
    numbers: Mapping[str, Tensor], path: str, shape: tuple[int, ...]
) -> tuple[Factor, Channels | None]:
    """Read the factor of a requantization, and where its channels are in what it rescales.

    Args:
        numbers: Integers by name.
        path: Path of the requantizer, or of one of its parts.
        shape: Shape of what is rescaled.
    """
    multiplier, shift = numbers[f"{path}.multiplier"], numbers[f"{path}.shift"]
    channels = _find_channels(multiplier, shape)
    multiplier, shift = multiplier.flatten().long(), shift.flatten().long()
    if bool((multiplier == multiplier[0]).all() and (shift == shift[0]).all()):
        return Factor(multiplier[:1], shift[:1]), None
    return Factor(multiplier, shift), channels


def make_clip(low: Tensor, high: Tensor, shape: tuple[int, ...]) -> tuple[Stage, Channels | None]:
    """Make a stage that clips.

    Args:
        low: Least integers, int64, of a shape that broadcasts to the value's.
        high: Largest integers, like `low`.
        shape: Shape of what is clipped.
    """
    channels = _find_channels(low, shape)
    # Values have 32 bits, so that bounds beyond these change nothing.
    low, high = (bound.flatten().clamp(_LEAST, _LARGEST) for bound in (low, high))
    if bool((low == low[0]).all() and (high == high[0]).all()):
        return Stage(None, low[:1], high[:1]), None
    return Stage(None, low, high), channels


def _find_channels(scale: Tensor, shape: tuple[int, ...]) -> Channels | None:
    """Find the dimension of a value along which a scale, or what is like it, differs."""
    wide = [dim for dim in range(-scale.dim(), 0) if scale.shape[dim] > 1]
    if not wide:
        return None
    (dim,) = wide
    return Channels(shape[dim], prod(shape[dim:][1:]))


def add_stage(
    computation: Computation, stage: Stage, channels: Channels | None
) -> Computation | None:
    """Return a computation with one more thing done to its results.

    Args:
        computation: The computation.
        stage: What is done to its results, besides what is done to them already.
        channels: Where the channels are that the stage needs; None where it needs none.

    Returns:
        The computation; None where other stages need other channels, or where the results are
        arranged anew and the stage depends on their places.
    """
    if None not in (channels, computation.channels) and channels != computation.channels:
        return None
    by_value = channels is None and stage.keeps_zero
    if computation.arranged is not None and not by_value:
        return None
    stages = list(computation.stages)
    if stages and _is_clip(stage):
        last = stages.pop()
        low, high = (torch.clamp(bound, stage.low, stage.high) for bound in (last.low, last.high))
        stages.append(replace(last, low=low, high=high))
    elif stages and _is_clip(stages[-1]) and stage.operand is None and stage.factor is not None:
        # Rescaling never changes the order of integers: what is clipped before it can be after it.
        last = stages.pop()
        low, high = (
            torch.clamp(stage.factor.apply(bound), stage.low, stage.high)
            for bound in (last.low, last.high)
        )
        stages.append(replace(stage, low=low, high=high))
    else:
        stages.append(stage)
    return replace(
        computation,
        stages=stages,
        channels=channels or computation.channels,
        bounds=_bound(computation.bounds, stage),
    )


def _is_clip(stage: Stage) -> bool:
    return stage.factor is None and stage.operand is None


def _bound(bounds: tuple[int, int], stage: Stage) -> tuple[int, int]:
    """Return what results lie between after a stage."""
    if stage.operand is not None:
        return int(stage.low.min()), int(stage.high.max())
    ends = []
    for bound in bounds:
        end = torch.tensor([bound])
        end = end if stage.factor is None else stage.factor.apply(end)
        ends.append(torch.clamp(end, stage.low, stage.high))
    return int(ends[0].min()), int(ends[1].max())
