"""Orders of elements are recognised as exchanges of dimensions, choices along them, and borders."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ompq.export.onnx.orders import find_border, find_exchange, find_range, find_selection

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=5)


def number(shape: list[int]) -> np.ndarray:
    return np.arange(prod(shape)).reshape(shape)


@given(SHAPES, st.data())
def test_every_exchange_of_dimensions_is_found(shape: list[int], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    places = number(shape).transpose(order)
    found = find_exchange(places.ravel(), prod(shape))
    assert found is not None
    again = np.arange(prod(shape)).reshape(found.shape).transpose(found.order)
    assert (again.ravel() == places.ravel()).all()


@given(st.permutations(range(12)))
def test_an_exchange_that_is_found_is_the_permutation(places: list[int]) -> None:
    found = find_exchange(np.array(places), 12)
    if found is not None:
        again = np.arange(12).reshape(found.shape).transpose(found.order)
        assert again.ravel().tolist() == places


def test_shuffles_of_pixels_and_of_channels_are_exchanges() -> None:
    shuffled = number([2, 2, 2, 3, 3]).transpose(0, 3, 1, 4, 2).reshape(2, 6, 6)
    assert find_exchange(shuffled, 72) is not None
    assert find_exchange(number([2, 4, 9]).transpose(1, 0, 2).reshape(8, 9), 72) is not None
    assert find_exchange(np.array([0, 1, 3, 2]), 4) is None
    assert find_exchange(np.array([0, 0, 1, 1]), 4) is None
    assert find_exchange(np.array([0, 1]), 4) is None


@given(SHAPES, st.data())
def test_every_choice_along_dimensions_is_found(shape: list[int], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    picks = [
        data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=6)) for size in shape
    ]
    places = number(shape)[np.ix_(*picks)].transpose(order)
    found = find_selection(places, shape)
    if found is None:
        # A place that is taken several times is no choice, but a repetition.
        assert any(len(taken) > 1 and len(set(taken)) == 1 for taken in picks)
        return
    again = number(shape)[np.ix_(*found.picks)].transpose(found.order)
    assert (again.ravel() == places.ravel()).all()


def test_a_choice_of_one_place_leaves_the_dimension_out() -> None:
    found = find_selection(number([3, 4, 5])[:, 2], (3, 4, 5))
    assert found is not None
    assert [len(picks) for picks in found.picks] == [3, 1, 5]
    assert find_selection(np.diagonal(number([3, 3])), (3, 3)) is None


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(0, 2)), max_size=3))
def test_every_border_of_zeros_is_found(sides: list[tuple[int, int, int]]) -> None:
    inner = number([size for _, size, _ in sides])
    widths = [(before, after) for before, _, after in sides]
    found = find_border(np.pad(inner, widths, constant_values=-1) if sides else inner)
    assert found is not None
    assert list(zip(found.before, found.after, strict=True)) == widths
    assert (found.inner == inner).all()


def test_zeros_elsewhere_are_no_border() -> None:
    assert find_border(np.array([0, -1, 1])) is None
    assert find_border(np.array([-1, -1])) is None


@given(st.integers(0, 9), st.integers(1, 5), st.integers(1, 4))
def test_regular_places_are_a_slice(first: int, count: int, step: int) -> None:
    picks = first + step * np.arange(count)
    found = find_range(picks)
    assert found is not None
    assert (np.arange(100)[found] == picks).all()
    assert find_range(np.array([3, 2, 1])) is None
    assert find_range(np.array([0, 1, 3])) is None
