"""Values of options, parsed from their texts."""

from __future__ import annotations

import argparse
import math


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def natural(text: str) -> int:
    """Parse a whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def seed_number(text: str) -> int:
    """Parse a seed: a whole number that every generator takes."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^63 - 1")
    return int(text)


def int_list(text: str) -> tuple[int, ...]:
    """Parse `4,8` (or `4 8`) into integers, one at least.

    >>> int_list("4,8")
    (4, 8)
    """
    try:
        numbers = tuple(int(word) for word in text.replace(",", " ").split())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 4,8") from error
    if not numbers:
        raise argparse.ArgumentTypeError("an empty list; give one such as 4,8")
    return numbers


def float_list(text: str) -> tuple[float, ...]:
    """Parse `1.5,2` (or `1.5 2`) into positive numbers.

    >>> float_list("1.5 2")
    (1.5, 2.0)
    """
    numbers = _parse_numbers(text, "1.5,2")
    if not numbers or not all(math.isfinite(number) and number > 0 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of positive numbers")
    return numbers


def channel_means(text: str) -> tuple[float, ...]:
    """Parse `0.49,0.48,0.45` into means of pixels in 0..1, one for each channel or for all.

    >>> channel_means("0.5")
    (0.5,)
    """
    numbers = _parse_numbers(text, "0.49,0.48,0.45")
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 0.49,0.48,0.45")
    if max(numbers) > 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no mean of pixels in 0..1; divide one of pixels in 0..255 by 255"
        )
    return numbers


def pin(text: str) -> tuple[str, int]:
    """Parse `NAME=BITS` into the name of a layer and its width.

    >>> pin("layer1.0.conv1=4")
    ('layer1.0.conv1', 4)
    """
    name, separator, bits = text.rpartition("=")
    if not separator or not bits.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=BITS")
    return name, int(bits)


def widths_by_layer(text: str) -> tuple[str, tuple[int, ...]]:
    """Parse `4,8`, or `NAME=4,8` for the layers of that name, into name and widths.

    >>> widths_by_layer("layer4.*=2,4")
    ('layer4.*', (2, 4))
    >>> widths_by_layer("4,8")
    ('', (4, 8))
    """
    name, separator, widths = text.rpartition("=")
    if separator and not name:
        raise argparse.ArgumentTypeError(f"{text!r} names no layer; write NAME=4,8 or 4,8")
    return name, int_list(widths)


def _parse_numbers(text: str, example: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.replace(",", " ").split())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as {example}") from error
