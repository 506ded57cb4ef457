"""The comparison of layers as a table, a file and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ompq.debug.comparison import LayerComparison
from ompq.files import write_json
from ompq.plots import ACCENT, INK, SOFT, figure

FORMAT = "ompq-debug/1"
# A picture's highest value, for what has hardly any noise.
_HIGHEST = 60.0


def sort_worst_first(layers: Sequence[LayerComparison]) -> list[LayerComparison]:
    """Sort layers by the noise that is their own; those that were not seen come last.

    Args:
        layers: Comparisons in any order.
    """
    return sorted(layers, key=lambda found: math.inf if found.own is None else found.own)


def print_table(layers: Sequence[LayerComparison], shown: int) -> None:
    """Print the layers with the most noise of their own, and what would help them.

    Args:
        layers: Comparisons in any order.
        shown: Number of lines; the others are counted.
    """
    chosen = sort_worst_first(layers)[:shown]
    width = max(12, *(len(found.name) for found in chosen))
    print(
        f"\n{'layer':<{width}} {'W':>2} {'A':>2} {'weight':>7} {'reads':>7} {'own':>7} "
        f"{'gives':>7} {'clipped %':>9} {'vanished':>8}  what helps"
    )
    for found in chosen:
        ratios = " ".join(
            f"{_format(value):>7}" for value in (found.weight, found.given, found.own, found.output)
        )
        act_bits = "" if found.act_bits is None else found.act_bits
        print(
            f"{found.name:<{width}} {found.bits:>2} {act_bits:>2} {ratios} "
            f"{100 * found.clipped:>9.2f} {found.dead_channels:>8}  {found.hint}"
        )
    if len(layers) > len(chosen):
        print(f"and {len(layers) - len(chosen)} layers with less noise of their own")
    print(
        "signal to noise in decibels: of its weight, of what it reads, of what it gives for exact "
        "inputs (its own noise), and in the whole network; vanished: output channels without weight"
    )


def _format(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def to_json(layers: Sequence[LayerComparison], about: dict[str, Any]) -> dict[str, Any]:
    """Return the comparison as JSON values; an infinite ratio is null, as one not measured.

    Args:
        layers: Comparisons in execution order.
        about: Further entries: the command, its images, versions.
    """
    return {"format": FORMAT, **about, "layers": [_clean(asdict(found)) for found in layers]}


def _clean(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }


def write(layers: Sequence[LayerComparison], about: dict[str, Any], folder: Path) -> list[str]:
    """Write `debug.json` and `debug.png` into a folder.

    Args:
        layers: Comparisons in execution order.
        about: Further entries of the file.
        folder: Folder that takes both.

    Returns:
        Their names.

    Raises:
        OmpqError: They cannot be written.
    """
    write_json(folder / "debug.json", to_json(layers, about))
    _draw(layers, folder / "debug.png")
    return ["debug.json", "debug.png"]


def _draw(layers: Sequence[LayerComparison], path: Path) -> None:
    """Draw the ratios along the depth of the network."""
    places = range(len(layers))
    curves = (
        ("its weight", [found.weight for found in layers], SOFT, "."),
        ("for exact inputs: its own noise", [found.own for found in layers], ACCENT, "o"),
        ("in the quantized network", [found.output for found in layers], INK, "o"),
    )
    with figure(path, max(6.0, 1.5 + 0.25 * len(layers)), 4.5) as drawn:
        axes = drawn.add_subplot()
        for title, values, color, marker in curves:
            heights = [math.nan if v is None else max(min(v, _HIGHEST), -5.0) for v in values]
            axes.plot(places, heights, color=color, marker=marker, markersize=4, label=title)
        axes.set_xticks(places, [found.name for found in layers], rotation=90, fontsize=7)
        axes.set_ylabel("signal to noise, dB")
        axes.grid(axis="y", alpha=0.3)
        axes.legend(frameon=False)
