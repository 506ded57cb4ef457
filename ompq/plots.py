"""Pictures: drawn off screen, written beside and renamed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ompq.files import atomic_path

INK, ACCENT, SOFT = "#22303c", "#d1495b", "#8fb8de"


@contextmanager
def figure(path: str | Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of width × height inches that is written to `path` when the body ends."""
    drawn = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(drawn)
    yield drawn
    with atomic_path(path) as temporary:
        drawn.savefig(temporary, dpi=150)
