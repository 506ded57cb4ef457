"""Copies planned for views, carried out here, against what the views are."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn.functional import pad

from ompq.export.c.copies import Copies, Copy, Gather, find_zero_padding, plan_copy
from ompq.export.c.program import Buffer, View

SHAPE = (4, 6, 5)
COUNT = 4 * 6 * 5
NUMBERED = torch.arange(COUNT).view(SHAPE)


def copy_by_loops(copy: Copy, to: Tensor) -> None:
    for turn in product(*(range(axis.count) for axis in copy.axes)):
        pairs = list(zip(copy.axes, turn, strict=True))
        place = copy.to + sum(int(axis.to[k]) for axis, k in pairs)
        first = copy.origin + sum(int(axis.origin[k]) for axis, k in pairs)
        to[place : place + copy.run] = torch.arange(first, first + copy.run)


def carry_out(view: View) -> Tensor:
    """Do in Python what C does; elements that nothing is said of stay -2."""
    task = plan_copy(view)
    assert isinstance(task, Copy | Copies | Gather)
    to = torch.full((view.places.numel(),), -1 if task.zeros else -2)
    if isinstance(task, Copy | Copies):
        for copy in task.parts if isinstance(task, Copies) else (task,):
            copy_by_loops(copy, to)
        return to.view(view.shape)
    if isinstance(task, Gather):
        for run, first in enumerate(task.table.tolist()):
            if first >= 0:
                place = run * task.run
                to[place : place + task.run] = torch.arange(first, first + task.run)
        return to.view(view.shape)


def check(places: Tensor) -> None:
    view = View(Buffer(COUNT, (0, 1)), places)
    assert torch.equal(carry_out(view), places)


ARRANGEMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.permute(2, 0, 1),
    "flipped": lambda x: x.flip(0, 2),
    "cropped": lambda x: x[1:3, ::2, 4:],
    "surrounded": lambda x: pad(x, (1, 2, 3, 0), value=-1),
    "rolled": lambda x: x.roll((1, 2, 3), (0, 1, 2)),
    "repeated": lambda x: x.repeat_interleave(2, 1).expand(2, 4, 12, 5),
    "chosen": lambda x: x[torch.tensor([2, 0, 0])][:, torch.tensor([5, 1, 4, 2])],
    "one element": lambda x: x[3, 5, 4],
    "zeros alone": lambda x: torch.full((3, 2), -1),
    "interleaved": lambda x: pad(x, (0, 1), value=-1).reshape(-1, 9),
}


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_copies_do_what_operations_do(name: str) -> None:
    check(ARRANGEMENTS[name](NUMBERED))


@given(st.lists(st.integers(-1, COUNT - 1), min_size=1, max_size=40), st.integers(1, 4))
def test_any_places_can_be_copied(places: list[int], rows: int) -> None:
    check(torch.tensor(places * rows).view(rows, -1))


@settings(max_examples=50)
@given(
    st.permutations(range(3)),
    st.lists(st.integers(0, 2), min_size=6, max_size=6),
    st.lists(st.integers(1, 3), min_size=3, max_size=3),
    st.booleans(),
)
def test_slices_of_padded_permutations_are_loops_without_tables(
    dims: list[int], zeros: list[int], steps: list[int], flips: bool
) -> None:
    x = pad(NUMBERED.permute(dims), zeros, value=-1)
    x = x[:: steps[0], :: steps[1], :: steps[2]]
    places = x.flip(1) if flips else x
    check(places)
    assert isinstance(plan_copy(View(Buffer(COUNT, (0, 1)), places)), Copy) or (places < 0).all()


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_maps_beside_enlarged_maps_are_copied_part_by_part(dim: int) -> None:
    kept = torch.arange(4 * 12 * 20).view(4, 12, 20)
    small = torch.arange(4 * 6 * 10).view(4, 6, 10) + kept.numel()
    enlarged = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    joined = torch.cat([kept, enlarged, kept.flip(dim)], dim)
    places = pad(joined, (1, 1, 1, 1), value=-1)
    view = View(Buffer(kept.numel() + small.numel(), (0, 1)), places)
    assert torch.equal(carry_out(view), places)
    task = plan_copy(view)
    assert isinstance(task, Copies) and 3 <= len(task.parts) <= 8


def test_neighbours_are_copied_at_once() -> None:
    task = plan_copy(View(Buffer(COUNT, (0, 1)), NUMBERED[1:3]))
    assert isinstance(task, Copy)
    assert (task.run, task.axes, task.origin) == (60, (), 30)


def test_tables_tell_the_longest_runs() -> None:
    places = torch.tensor([[4, 5, 6, 7], [0, 1, -1, -1], [2, 3, 0, 1]])
    task = plan_copy(View(Buffer(8, (0, 1)), places))
    assert isinstance(task, Gather)
    assert (task.table.tolist(), task.run, task.zeros) == ([4, 6, 0, -1, 2, 0], 2, True)


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_zeros_around_maps_are_found(sides: list[int]) -> None:
    places = pad(NUMBERED[None], sides, value=-1)
    found = find_zero_padding(View(Buffer(COUNT, (0, 1)), places))
    if not any(sides):
        assert found is None
        return
    assert found is not None
    view, top, left = found
    assert (top, left) == (sides[2], sides[0])
    assert torch.equal(view.places, NUMBERED[None])


def test_zeros_within_maps_are_not_around_them() -> None:
    places = NUMBERED[None].clone()
    places[0, 0, 2, 2] = -1
    assert find_zero_padding(View(Buffer(COUNT, (0, 1)), places)) is None
    cropped = pad(NUMBERED[None][..., 1:], (0, 1), value=-1)
    assert find_zero_padding(View(Buffer(COUNT, (0, 1)), cropped)) is None
