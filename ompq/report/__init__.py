"""One page in the browser of what a run found: `report.html`, one file that needs nothing else.

write_report   folders of runs → one page; add_report: of a run that has just ended
read_folder    folder of a run → Run, all that its files tell

    reading.py    the JSON files of a folder
    markup.py     HTML and SVG as text
    figures.py    bars, curves, a heat map, a front
    sections.py   the parts of a page
    page.py       the page, with style.css and page.js in it
"""

from typing import TYPE_CHECKING

from ompq._face import attach

if TYPE_CHECKING:
    from ompq.report.page import add_report, write_report
    from ompq.report.reading import Run, read_folder

__all__ = ["Run", "add_report", "read_folder", "write_report"]

__getattr__, __dir__ = attach(
    __name__,
    {"ompq.report.page": "add_report write_report", "ompq.report.reading": "Run read_folder"},
)
