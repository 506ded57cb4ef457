"""Command-line options of the report."""

from __future__ import annotations

from pathlib import Path

from ompq.parser import Parser


def build_parser() -> Parser:
    """Build the parser with all options of the script."""
    parser = Parser(
        prog="ompq-report",
        description="Write one page in the browser of what runs found: figures, bits, layers, "
        "sensitivities, changed answers. Several runs stand side by side.",
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="output folders of finished runs"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the page (default: report.html in the first)"
    )
    return parser
