"""Whole numbers of 1 to 8 bits as a stream of bits, or coded shorter.

In the stream value i has the bits i·b to i·b + b − 1, counted from the least significant bit of
the first byte on: eight values are b bytes. Coded, whole values are the symbols of a Huffman code
(raw deflate without matches, RFC 1951), which comes close to their entropy; bits that cross the
borders of bytes would hide it.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

# Symbols are bytes: as many whole values as fit well into one, by their width.
_VALUES_PER_SYMBOL = {1: 8, 2: 4, 3: 2, 4: 2}
# Words that a step works on at a time, so that they stay in the cache.
_CHUNK = 2**13
_RAW_DEFLATE = -15


def pack_bits(values: Bytes, bits: int) -> Bytes:
    """Pack values into a stream of bits.

    Args:
        values: Values below 2^bits, uint8, any shape.
        bits: Width of a value, 1 to 8.

    Returns:
        Stream, uint8: exactly ⌈n · bits / 8⌉ bytes for n values.

    Raises:
        ValueError: The width is none, or a value does not fit into it.

    >>> pack_bits(np.array([1, 2, 3], np.uint8), 4)
    array([33,  3], dtype=uint8)
    """
    flat = _flatten(values, bits)
    if bits == 8:
        return flat.copy()
    words = np.zeros(-(-flat.size // 8), "<u8")
    words.view(np.uint8)[: flat.size] = flat
    stream = np.empty((words.size, bits), np.uint8)
    for start in range(0, words.size, _CHUNK):
        joined = words[start : start + _CHUNK]
        # Neighbours are joined to pairs, these to fours, and these to eights.
        for lane, kept in ((8, bits), (16, 2 * bits), (32, 4 * bits)):
            low = _repeat_mask(kept, 2 * lane)
            joined = (joined & low) | ((joined >> np.uint64(lane - kept)) & ~low)
            joined &= _repeat_mask(2 * kept, 2 * lane)
        stream[start : start + _CHUNK] = joined.view(np.uint8).reshape(-1, 8)[:, :bits]
    return stream.reshape(-1)[: _count_bytes(flat.size, bits)]


def unpack_bits(data: Bytes, bits: int, count: int) -> Bytes:
    """Unpack what `pack_bits` packed.

    Args:
        data: Stream, uint8.
        bits: Width of a value, 1 to 8.
        count: Number of values.

    Returns:
        Values, uint8, `count` of them.

    Raises:
        ValueError: The stream is not as long as so many values make it.

    >>> unpack_bits(np.array([33, 3], np.uint8), 4, 3)
    array([1, 2, 3], dtype=uint8)
    """
    _check_width(bits)
    if data.dtype != np.uint8 or data.shape != (_count_bytes(count, bits),):
        raise ValueError(
            f"{count} values of {bits} bits are {_count_bytes(count, bits)} bytes, not a "
            f"{data.dtype} array of shape {data.shape}"
        )
    if bits == 8:
        return data.copy()
    words = -(-count // 8)
    stream = np.zeros(words * bits, np.uint8)
    stream[: data.size] = data
    by_word = stream.reshape(words, bits)
    values = np.empty((words, 8), np.uint8)
    for start in range(0, words, _CHUNK):
        chunk = by_word[start : start + _CHUNK]
        wide = np.zeros((len(chunk), 8), np.uint8)
        wide[:, :bits] = chunk
        joined = wide.view("<u8").reshape(-1)
        for lane, kept in ((32, 4 * bits), (16, 2 * bits), (8, bits)):
            low = _repeat_mask(kept, 2 * lane)
            joined = (joined & low) | ((joined & ~low) << np.uint64(lane - kept))
        values[start : start + _CHUNK] = joined.view(np.uint8).reshape(-1, 8)
    return values.reshape(-1)[:count]


def code_values(values: Bytes, bits: int) -> Bytes:
    """Code values by their frequencies, which pays where some are rare.

    Args:
        values: Values below 2^bits, uint8, any shape.
        bits: Width of a value, 1 to 8.

    Returns:
        The code, uint8; of whatever length comes of it.

    Raises:
        ValueError: The width is none, or a value does not fit into it.
    """
    flat = _flatten(values, bits)
    per_symbol = _VALUES_PER_SYMBOL.get(bits, 1)
    symbols = np.zeros(-(-flat.size // per_symbol), np.uint8)
    for place in range(per_symbol):
        taken = flat[place::per_symbol]
        symbols[: taken.size] |= taken << np.uint8(place * bits)
    coder = zlib.compressobj(9, zlib.DEFLATED, _RAW_DEFLATE, 9, zlib.Z_HUFFMAN_ONLY)
    return np.frombuffer(coder.compress(symbols.tobytes()) + coder.flush(), np.uint8).copy()


def decode_values(data: Bytes, bits: int, count: int) -> Bytes:
    """Decode what `code_values` coded.

    Args:
        data: The code, uint8.
        bits: Width of a value, 1 to 8.
        count: Number of values.

    Returns:
        Values, uint8, `count` of them.

    Raises:
        ValueError: It is no code of so many values.
    """
    _check_width(bits)
    per_symbol = _VALUES_PER_SYMBOL.get(bits, 1)
    expected = -(-count // per_symbol)
    decoder = zlib.decompressobj(_RAW_DEFLATE)
    try:
        # One byte more than there must be, so that a longer code is told from the right one.
        symbols = np.frombuffer(decoder.decompress(data.tobytes(), expected + 1), np.uint8)
    except zlib.error as error:
        raise ValueError(f"no code of {count} values: {error}") from error
    if symbols.size != expected or not decoder.eof or decoder.unused_data:
        raise ValueError(f"no code of {count} values, but of other or more")
    values = np.empty((expected, per_symbol), np.uint8)
    for place in range(per_symbol):
        values[:, place] = (symbols >> np.uint8(place * bits)) & np.uint8(2**bits - 1)
    return values.reshape(-1)[:count]


def _count_bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def _check_width(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"values have 1 to 8 bits, not {bits}")


def _flatten(values: Bytes, bits: int) -> Bytes:
    """Return values as one row, once it is known that they fit into their width."""
    _check_width(bits)
    if values.dtype != np.uint8:
        raise ValueError(f"values must be uint8, not {values.dtype}")
    if values.size and int(values.max()) >= 2**bits:
        raise ValueError(f"the value {int(values.max())} does not fit into {bits} bits")
    return np.ascontiguousarray(values).reshape(-1)


def _repeat_mask(width: int, lane: int) -> Any:
    """Return a word that has the lowest `width` bits of every lane set.

    >>> hex(int(_repeat_mask(4, 16)))
    '0xf000f000f000f'
    """
    return np.uint64(sum((2**width - 1) << start for start in range(0, 64, lane)))
