"""A latency table: how long every layer takes at some widths, as the user measured it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ompq.errors import OmpqError
from ompq.graph import Group

NANOSECONDS_PER_MS = 10**6
# A day; sums of nanoseconds stay far within 63 bits.
_LONGEST_MS = 86_400_000


@dataclass(frozen=True)
class LatencyTable:
    """Table of the time that every layer takes at some widths.

    A width that was not measured takes as long as the next wider one that was, on which hardware
    without the narrower would run it.

    Attributes:
        times: Layer → width in bits (32 for float) → milliseconds.
        source: File that the table was read from, for messages.
    """

    times: Mapping[str, Mapping[int, float]]
    source: str

    def cost(self, group: Group, width: int) -> int:
        """Add up the nanoseconds that a group's layers take at one width.

        Args:
            group: The group.
            width: Weight width in bits.

        Raises:
            OmpqError: The table lacks a layer, or has neither this width nor a wider one for it.

        >>> table = LatencyTable({"conv": {4: 1.5, 8: 2.0}}, "table.json")
        >>> conv = Group(layers=("conv",), tap="conv", role="body", params=9, ops=81)
        >>> [table.cost(conv, width) for width in (2, 4, 5)]
        [1500000, 1500000, 2000000]
        """
        return sum(self._look_up(layer, width) for layer in group.layers)

    def _look_up(self, layer: str, width: int) -> int:
        if layer not in self.times:
            raise OmpqError(f"{self.source} has no times for the layer {layer}; measure or add it")
        wider = [bits for bits in self.times[layer] if bits >= width]
        if not wider:
            raise OmpqError(f"{self.source}: {layer} has no time for {width} bits or more; add one")
        # Whole nanoseconds, since budgets are kept in whole numbers.
        return round(self.times[layer][min(wider)] * NANOSECONDS_PER_MS)

    def total_ms(self, groups: Sequence[Group], widths: Sequence[int]) -> float:
        """Add up the milliseconds of a network at one width per group."""
        spent = sum(self.cost(group, width) for group, width in zip(groups, widths, strict=True))
        return spent / NANOSECONDS_PER_MS


def load_latency(path: str | Path) -> LatencyTable:
    """Read a latency table from a JSON file `{layer: {bits: milliseconds}}`.

    Args:
        path: Path of the file.

    Raises:
        OmpqError: The file is missing or not JSON, or an entry is no time (names the entry).
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OmpqError(
            f"latency table {path} cannot be read: {reason}; check `latency_table`"
        ) from error
    form = f"latency table {path}: expected {{layer: {{bits: milliseconds}}}}"
    if not isinstance(content, dict) or not content:
        raise OmpqError(form)
    times: dict[str, dict[int, float]] = {}
    for layer, entries in content.items():
        if not isinstance(entries, dict) or not entries:
            raise OmpqError(f"{form}; the entry of {layer} is {entries!r}; correct it")
        times[layer] = {}
        for bits, value in entries.items():
            is_time = isinstance(value, int | float) and not isinstance(value, bool)
            is_width = bits.isdecimal() and len(bits) <= 2
            if not is_width or not is_time or not 0 <= value <= _LONGEST_MS:
                raise OmpqError(f"{form}; {layer} has {bits!r}: {value!r}; correct that entry")
            times[layer][int(bits)] = float(value)
    return LatencyTable(times, str(path))
