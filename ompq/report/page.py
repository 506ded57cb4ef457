"""The page of a report: one HTML file with its style, its script and its figures in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from ompq.errors import OmpqError
from ompq.files import atomic_path
from ompq.report.markup import element, text
from ompq.report.reading import Run, read_folder
from ompq.report.sections import describe_run, show_side_by_side

FILE = "report.html"


def write_report(folders: Sequence[Path], path: Path | None = None) -> Path:
    """Write what runs found as one page, from the files in their folders.

    Args:
        folders: Output folders of the commands; several stand side by side.
        path: Path of the page; None for `report.html` in the first folder.

    Returns:
        Path of the page.

    Raises:
        OmpqError: A folder holds no result, a file of it is damaged, or the page cannot be written.
    """
    if not folders:
        raise OmpqError("there is no folder to report on; give output folders of finished runs")
    page = build_page([read_folder(Path(folder)) for folder in folders])
    path = Path(folders[0]) / FILE if path is None else path
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def add_report(folder: Path, say: Callable[[str], None]) -> list[str]:
    """Write the page of a run that has just ended, into its folder.

    What others left there damaged costs the page, not the run.

    Args:
        folder: Folder of the run.
        say: Function that is told why there is no page.

    Returns:
        Name of the page in a list; none where it was not written.
    """
    try:
        return [write_report([folder]).name]
    except OmpqError as error:
        say(f"there is no {FILE}: {error}")
        return []


def build_page(runs: Sequence[Run]) -> str:
    """Build the page of one run, or of several side by side.

    Args:
        runs: At least one run.
    """
    titles = [_title(run, runs) for run in runs]
    body = [element("h1", text(titles[0] if len(runs) == 1 else "Runs side by side"))]
    if len(runs) == 1:
        body += [element("p", text(runs[0].kind), class_="quiet"), describe_run(runs[0])]
    else:
        body.append(show_side_by_side(runs, titles))
        for title, run in zip(titles, runs, strict=True):
            head = element("summary", text(f"{title}: {run.kind}"))
            body.append(element("details", head, describe_run(run), class_="run"))
    sources = files("ompq.report")
    style = (sources / "style.css").read_text(encoding="utf-8")
    script = (sources / "page.js").read_text(encoding="utf-8")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        '<link rel="icon" href="data:,">'
        + element("title", text(" · ".join(titles)))
        + element("style", style)
    )
    whole = element("head", head) + element("body", *body, element("script", script))
    return "<!doctype html>\n" + element("html", whole, lang="en") + "\n"


def _title(run: Run, runs: Sequence[Run]) -> str:
    """Return a title that tells a run from the others."""
    size = run.main.get("model_size_mb")
    name = Path(run.model).name
    title = name if size is None else f"{name}, {size:.4f} MB"
    return title if len(runs) == 1 else f"{run.folder}: {title}"
