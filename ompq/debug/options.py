"""Command-line options of the debugger of layers."""

from __future__ import annotations

from pathlib import Path

from ompq.data import DATASETS
from ompq.options import Parser
from ompq.values import natural, positive


def build_parser() -> Parser:
    """Build the parser with all options of the script."""
    parser = Parser(
        prog="ompq-debug",
        description="Show where a quantized network loses what the float network computes: every "
        "layer beside that of the float network, worst first, with what would help.",
    )
    parser.add_argument(
        "source", type=Path, metavar="DIR", help="folder that ompq-ptq or ompq-qat wrote"
    )
    parser.add_argument(
        "--path", type=Path, help="checkpoint of the float network (default: that of the run)"
    )
    parser.add_argument("--num_images", type=positive, default=32, help="images to compare on")
    parser.add_argument(
        "--dataset", choices=list(DATASETS), help="data set (default: that of the run)"
    )
    parser.add_argument("--data", type=Path, help="folder of the data set")
    parser.add_argument("--shown", type=positive, default=20, help="lines of the table")
    parser.add_argument("--workers", "-j", type=natural, default=2, help="threads that decode")
    return parser
