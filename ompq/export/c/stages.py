"""What is done to results before they are stored: rescaling and clamping, merged where possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ompq.export.c.layers import Convolution, Product
from ompq.export.c.operations import Line, Table, Times, find_channels
from ompq.export.c.pools import Pooling, Reduction
from ompq.export.c.program import Action, Channels, Computation, Factor, Stage, Task

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
    channels = find_channels(tuple(multiplier.shape), shape)
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
    channels = find_channels(tuple(low.shape), shape)
    # Values have 32 bits, so that bounds beyond these change nothing.
    low, high = (bound.flatten().clamp(_LEAST, _LARGEST) for bound in (low, high))
    if bool((low == low[0]).all() and (high == high[0]).all()):
        return Stage(None, low[:1], high[:1]), None
    return Stage(None, low, high), channels


def add_stage(
    computation: Computation, stage: Action, channels: Channels | None
) -> Computation | None:
    """Return a computation with one more thing done to its results.

    Args:
        computation: The computation.
        stage: What is done to its results, besides what is done to them already.
        channels: Where the channels are that the stage needs; None where it needs none.

    Returns:
        The computation; None where other stages need other channels, the results are arranged anew
        and the stage depends on their places, or they are not computed channel by channel.
    """
    if None not in (channels, computation.channels) and channels != computation.channels:
        return None
    by_value = channels is None and stage.keeps_zero
    if computation.arranged is not None and not by_value:
        return None
    if channels is not None and not _computes_by(computation.task, channels):
        return None
    return replace(
        computation,
        stages=_merge(computation.stages, stage),
        channels=channels or computation.channels,
        bounds=stage.bound(computation.bounds),
    )


def _computes_by(task: Task, channels: Channels) -> bool:
    """Tell whether results that are computed in a row are of one channel each, or of the next."""
    if isinstance(task, Product):
        # Results of one output channel, for one row of inputs after another.
        steady = channels.inner == 1 and task.outputs % channels.count == 0
        return steady or task.positions == 1
    if isinstance(task, Convolution):
        run = task.results[0] * task.results[1]
    elif isinstance(task, Pooling):
        run = task.horizontal.results
    elif isinstance(task, Reduction):
        run = task.inner
    else:
        # These mind where channels end.
        return True
    return channels.inner % run == 0 or (channels.inner == 1 and channels.count % run == 0)


def _merge(stages: Sequence[Action], stage: Action) -> list[Action]:
    """Add a stage to others, as one with the last of them where that is possible."""
    if not stages:
        return [stage]
    *before, last = stages
    table = before[-1] if isinstance(last, Line) and before else last
    if isinstance(table, Table) and isinstance(stage, Stage | Table):
        folded = table if table is last else _fold(table, last)
        folded = None if folded is None else _fold(folded, stage)
        if folded is not None:
            return [*(before if table is last else before[:-1]), folded]
    if isinstance(stage, Stage) and isinstance(last, Stage):
        if _is_clip(stage):
            ends = (torch.clamp(bound, stage.low, stage.high) for bound in (last.low, last.high))
            low, high = ends
            return [*before, replace(last, low=low, high=high)]
        if _is_clip(last) and stage.operand is None:
            # Rescaling never changes the order of integers: what is clipped before it can be after.
            low, high = stage.apply(last.low), stage.apply(last.high)
            return [*before, replace(stage, low=low, high=high)]
    return [*stages, stage]


def _fold(table: Table, action: Action) -> Table | None:
    """Do to the entries of a table what is done to them once they are looked up.

    One table for all channels does not become one for each.
    """
    if action.operand is not None or isinstance(action, Times):
        return None
    assert isinstance(action, Stage | Line | Table)
    entries = action.apply(table.entries.t()).t()
    return replace(table, entries=entries) if len(entries) == len(table.entries) else None


def _is_clip(stage: Stage) -> bool:
    return stage.factor is None and stage.operand is None
