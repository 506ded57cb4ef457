"""Widths in bits that everybody counts with."""

from __future__ import annotations

from collections.abc import Sequence

from ompq.errors import OmpqError

FLOAT_BITS = 32
# Images are integers already; sums of branches need more than their parts.
PIXEL_BITS, SUM_BITS = 8, 16


def check_widths(bits: Sequence[object], where: str, lowest: int = 2, highest: int = 8) -> None:
    """Refuse anything but whole numbers of bits that the quantizers know.

    Raises:
        OmpqError: names the first entry that is not an integer from `lowest` to `highest`.
    """
    for position, width in enumerate(bits):
        if type(width) is not int or not lowest <= width <= highest:
            entry = f"{where}: entry {position + 1}" if len(bits) > 1 else where
            raise OmpqError(
                f"{entry} is {width!r}; bit widths are whole numbers from {lowest} to {highest}"
            )
