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
    """Layer → width → milliseconds, from the file `source`.

    Width 32 stands for float. A width that was not measured takes as long as the next wider one
    that was, on which hardware without the narrower would run it.
    """

    times: Mapping[str, Mapping[int, float]]
    source: str

    def cost(self, group: Group, width: int) -> int:
        """Nanoseconds of a group's layers at `width`.

        Raises:
            OmpqError: the table lacks a layer, or has neither this width nor a wider one for it.
        """
        return sum(self._of_layer(layer, width) for layer in group.layers)

    def _of_layer(self, layer: str, width: int) -> int:
        if layer not in self.times:
            raise OmpqError(f"{self.source} has no times for the layer {layer}")
        wider = [bits for bits in self.times[layer] if bits >= width]
        if not wider:
            raise OmpqError(f"{self.source}: {layer} has no time for {width} bits or more")
        return round(self.times[layer][min(wider)] * NANOSECONDS_PER_MS)

    def total_ms(self, groups: Sequence[Group], widths: Sequence[int]) -> float:
        """Milliseconds of a network at one width per group."""
        spent = sum(self.cost(group, width) for group, width in zip(groups, widths, strict=True))
        return spent / NANOSECONDS_PER_MS


def load_latency(path: str | Path) -> LatencyTable:
    """Read `{layer: {bits: milliseconds}}`.

    Raises:
        OmpqError: missing, not JSON, or an entry that is no time (named).
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OmpqError(f"latency table {path} cannot be read: {error}") from error
    form = f"latency table {path}: expected {{layer: {{bits: milliseconds}}}}"
    if not isinstance(content, dict) or not content:
        raise OmpqError(form)
    times: dict[str, dict[int, float]] = {}
    for layer, entries in content.items():
        if not isinstance(entries, dict) or not entries:
            raise OmpqError(f"{form}; the entry of {layer} is {entries!r}")
        times[layer] = {}
        for bits, value in entries.items():
            is_time = isinstance(value, int | float) and not isinstance(value, bool)
            is_width = bits.isdecimal() and len(bits) <= 2
            if not is_width or not is_time or not 0 <= value <= _LONGEST_MS:
                raise OmpqError(f"{form}; {layer} has {bits!r}: {value!r}")
            times[layer][int(bits)] = float(value)
    return LatencyTable(times, str(path))
