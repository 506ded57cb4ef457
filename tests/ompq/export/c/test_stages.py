"""Stages that are merged do what they did one after another."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import Tensor

from ompq.export.c.pools import Reduction
from ompq.export.c.program import Buffer, Channels, Computation, Factor, Map, Region, Stage
from ompq.export.c.stages import add_stage

CHANNELS = Channels(3, 1)
bounds = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=3, max_size=3).map(torch.tensor)
factors = st.builds(
    Factor,
    st.lists(st.integers(2**20, 2**21), min_size=3, max_size=3).map(torch.tensor),
    st.lists(st.integers(1, 60), min_size=3, max_size=3).map(torch.tensor),
)
clips = st.builds(lambda a, b: Stage(None, a, b), bounds, bounds)
rescalings = st.builds(Stage, factors, bounds, bounds)
values = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=3, max_size=3).map(torch.tensor)


def begin() -> Computation:
    return Computation(Map(), Region(Buffer(3, (0, 1))), (3,), (-(2**31), 2**31 - 1), "", 0)


def apply(stages: list[Stage], x: Tensor) -> Tensor:
    for stage in stages:
        x = x if stage.factor is None else stage.factor.apply(x)
        x = torch.clamp(x, stage.low, stage.high)
    return x


@settings(max_examples=50)
@given(st.lists(st.one_of(clips, rescalings), min_size=1, max_size=5), values)
def test_merged_stages_give_what_all_of_them_give(stages: list[Stage], x: Tensor) -> None:
    computation: Computation | None = begin()
    for stage in stages:
        assert computation is not None
        computation = add_stage(computation, stage, CHANNELS)
    assert computation is not None
    result = apply(computation.stages, x)
    assert torch.equal(result, apply(stages, x))
    low, high = computation.bounds
    assert low <= int(result.min()) <= int(result.max()) <= high


@settings(max_examples=50)
@given(clips, rescalings, clips)
def test_clips_around_a_rescaling_are_its_bounds(a: Stage, b: Stage, c: Stage) -> None:
    computation: Computation | None = begin()
    for stage in (a, b, c):
        assert computation is not None
        computation = add_stage(computation, stage, CHANNELS)
    assert computation is not None
    assert len(computation.stages) == 1


def test_other_channels_need_another_computation() -> None:
    stage = Stage(None, torch.arange(3), torch.full((3,), 9))
    begun = add_stage(begin(), stage, CHANNELS)
    assert begun is not None
    assert add_stage(begun, stage, Channels(3, 4)) is None


def test_what_depends_on_places_is_not_done_to_results_that_are_arranged() -> None:
    begun = begin()
    begun.arranged = torch.tensor([[2, 1, 0, -1]])
    assert add_stage(begun, Stage(None, torch.tensor(0), torch.tensor(5)), None) is not None
    assert add_stage(begun, Stage(None, torch.arange(3), torch.arange(3)), CHANNELS) is None
    # Zeros that are put in would become 1.
    assert add_stage(begun, Stage(None, torch.tensor(1), torch.tensor(5)), None) is None


def test_results_in_rows_are_of_channels_that_do_not_end_within_a_row() -> None:
    rows = Reduction(outer=6, length=5, inner=4, choice="SUM")
    begun = Computation(rows, Region(Buffer(120, (0, 1))), (2, 3, 4), (0, 9), "", 0)
    clips = {
        count: Stage(None, torch.arange(count), torch.full((count,), 9)) for count in (2, 3, 4)
    }
    # One channel per row; one per result of a row.
    assert add_stage(begun, clips[3], Channels(3, 4)) is not None
    assert add_stage(begun, clips[4], Channels(4, 1)) is not None
    assert add_stage(begun, clips[2], Channels(2, 12)) is not None
    # Channels of two results; three, of which rows of four would be.
    assert add_stage(begun, clips[2], Channels(2, 2)) is None
    assert add_stage(begun, clips[3], Channels(3, 1)) is None
