"""Pictures: drawn off screen, written beside the target and renamed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ompq.drawn import METADATA
from ompq.files import atomic_path

INK = "#22303c"
ACCENT = "#d1495b"
SOFT = "#8fb8de"


@contextmanager
def figure(path: str | Path, width: float, height: float) -> Iterator[Figure]:
    """Yield an empty figure, and write it to `path` when the body ends without an error.

    Args:
        path: Path of the picture; its suffix chooses the format.
        width: Width of the figure in inches.
        height: Height of the figure in inches.

    Raises:
        OmpqError: The picture cannot be written.
    """
    # Neither pyplot nor its global state: no display is needed, and no figure stays open.
    drawn = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(drawn)
    yield drawn
    with atomic_path(path) as temporary:
        is_png = temporary.suffix.lower() == ".png"
        drawn.savefig(temporary, dpi=150, metadata=METADATA if is_png else None)
