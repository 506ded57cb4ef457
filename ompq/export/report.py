"""The table that an export ends with."""

from __future__ import annotations

from collections.abc import Sequence

from ompq.export.checks import Exported


def print_table(rows: Sequence[Exported]) -> None:
    """Print a line for every file, and what was compared."""
    width = max(24, *(len(row.title) for row in rows))
    print(
        f"\n{'file':<{width}} {'bytes':>11} {'× promised':>10} {'load s':>7} {'ms/image':>9} "
        f"{'logits that differ':>19} {'at most':>8} {'agrees %':>9}  run by"
    )
    for row in rows:
        differing = f"{row.differing} of {row.logits}" if row.logits else "not run"
        print(
            f"{row.title:<{width}} {row.size:>11} {_format(row.of_promised, 3):>10} "
            f"{_format(row.load_seconds, 2):>7} {_format(row.image_seconds, 2, 1000):>9} "
            f"{differing:>19} {_format_difference(row):>8} {_format(row.agreement, 2):>9}  "
            f"{row.runtime}"
        )
    if any(row.logits for row in rows):
        print(
            "logits and classes are compared with those of the quantized network; differences are "
            "in standard deviations of the logits"
        )


def _format_difference(row: Exported) -> str:
    return "" if row.largest is None else f"{row.largest:.1g}"


def _format(value: float | None, digits: int, factor: float = 1.0) -> str:
    return "" if value is None else f"{value * factor:.{digits}f}"
