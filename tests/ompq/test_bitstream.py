"""Streams of bits and codes, against a slow version that takes one bit at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ompq.bitstream import code_values, decode_values, pack_bits, unpack_bits

Bytes = NDArray[np.uint8]


def pack_slowly(values: list[int], bits: int) -> list[int]:
    """Put bit k of value i at place i · bits + k of a row of bits, eight to a byte."""
    row = [value >> k & 1 for value in values for k in range(bits)]
    row += [0] * (-len(row) % 8)
    return [sum(bit << k for k, bit in enumerate(row[i : i + 8])) for i in range(0, len(row), 8)]


@st.composite
def widths_and_values(draw: st.DrawFn) -> tuple[int, list[int]]:
    bits = draw(st.integers(1, 8))
    return bits, draw(st.lists(st.integers(0, 2**bits - 1), max_size=41))


@given(widths_and_values())
def test_the_stream_is_what_bit_by_bit_gives(drawn: tuple[int, list[int]]) -> None:
    bits, values = drawn
    packed = pack_bits(np.array(values, np.uint8), bits)
    assert packed.dtype == np.uint8 and packed.tolist() == pack_slowly(values, bits)
    assert len(packed) == (len(values) * bits + 7) // 8
    assert unpack_bits(packed, bits, len(values)).tolist() == values


@given(widths_and_values())
def test_a_code_gives_its_values(drawn: tuple[int, list[int]]) -> None:
    bits, values = drawn
    coded = code_values(np.array(values, np.uint8), bits)
    assert decode_values(coded, bits, len(values)).tolist() == values


def draw(count: int, bits: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 2**bits, count, dtype=np.uint8)


@pytest.mark.parametrize("bits", range(1, 9))
def test_long_streams_of_odd_lengths(bits: int) -> None:
    values = draw(3 * 2**16 + 5, bits)
    packed = pack_bits(values, bits)
    head = 8 * 999
    assert packed[: 999 * bits].tolist() == pack_slowly(values[:head].tolist(), bits)
    assert np.array_equal(unpack_bits(packed, bits, values.size), values)
    # What eight values that begin a byte become does not depend on where they stand.
    tail = pack_bits(values[-5:], bits)
    assert np.array_equal(packed[-len(tail) :], tail)
    assert np.array_equal(decode_values(code_values(values, bits), bits, values.size), values)


def test_any_shape_and_layout_in_memory() -> None:
    values = draw(24, 3).reshape(4, 6).T
    assert np.array_equal(pack_bits(values, 3), pack_bits(values.flatten(), 3))
    assert np.array_equal(code_values(values, 3), code_values(values.flatten(), 3))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_a_code_comes_close_to_the_entropy_of_its_values(bits: int) -> None:
    noise = np.random.default_rng(0).normal(2 ** (bits - 1), 2**bits / 10, 100_000)
    values = noise.round().clip(0, 2**bits - 1).astype(np.uint8)
    share = np.bincount(values) / values.size
    share = share[share > 0]
    entropy = -(share * np.log2(share)).sum() * values.size / 8
    assert entropy <= len(code_values(values, bits)) < 1.05 * entropy
    assert entropy < 0.9 * len(pack_bits(values, bits))


@pytest.mark.parametrize("bits", [0, 9])
def test_widths_that_no_value_has_are_refused(bits: int) -> None:
    for write in (pack_bits, code_values):
        with pytest.raises(ValueError, match="1 to 8 bits"):
            write(draw(3, 1), bits)
    for read in (unpack_bits, decode_values):
        with pytest.raises(ValueError, match="1 to 8 bits"):
            read(draw(3, 1), bits, 3)


def test_values_that_do_not_fit_are_refused() -> None:
    for function in (pack_bits, code_values):
        with pytest.raises(ValueError, match="the value 4 does not fit into 2 bits"):
            function(np.array([1, 4], np.uint8), 2)
        with pytest.raises(ValueError, match="must be uint8, not int64"):
            function(np.array([1, 2]), 2)


def test_streams_and_codes_of_other_lengths_are_refused() -> None:
    values = draw(100, 3)
    packed, coded = pack_bits(values, 3), code_values(values, 3)
    for harmed in (packed[:-1], np.append(packed, packed[:1]), packed.reshape(1, -1)):
        with pytest.raises(ValueError, match="100 values of 3 bits are 38 bytes"):
            unpack_bits(harmed, 3, 100)
    for harmed in (coded[:-3], np.append(coded, coded[:1]), draw(40, 8)):
        with pytest.raises(ValueError, match="no code of 100 values"):
            decode_values(harmed, 3, 100)
    for count in (97, 103):
        with pytest.raises(ValueError, match="no code of"):
            decode_values(coded, 3, count)
