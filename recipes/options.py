"""The command line of `ompq-run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ompq.data import DATASETS
from ompq.errors import OmpqError
from ompq.options import Parser
from recipes.commands import FOLDER, Places


def build_parser() -> Parser:
    """Build the parser with all options of the script."""
    parser = Parser(
        prog="ompq-run",
        description="Run recipes: search, quantization and export of a network as a file says, and "
        "tell whether the figure that it expects was met.",
    )
    parser.add_argument("recipe", type=Path, nargs="+", metavar="FILE", help="a recipe, YAML")
    group = parser.add_argument_group("where files are")
    group.add_argument("--path", type=Path, help="weights of the one recipe's network")
    group.add_argument(
        "--weights", type=Path, metavar="DIR", help="folder of the weights that recipes name"
    )
    group.add_argument(
        "--data",
        type=_parse_folder,
        action="append",
        default=[],
        metavar="[DATASET=]DIR",
        help="folder of the data set; of several data sets, each with its name",
    )
    group.add_argument(
        "--output_dir", type=Path, default=FOLDER, help="folder for results, by recipe and stage"
    )
    group = parser.add_argument_group("what to do")
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with what was killed; what is done stays",
    )
    group.add_argument("--show", action="store_true", help="print the commands, and run nothing")
    group.add_argument(
        "--without",
        action="append",
        default=[],
        choices=list(DATASETS),
        help="leave out the recipes on that data set; may be repeated",
    )
    return parser


def read_places(arguments: argparse.Namespace) -> Places:
    """Read where files are.

    Raises:
        OmpqError: Weights of one network are given to several recipes.
    """
    if arguments.path is not None and len(arguments.recipe) > 1:
        raise OmpqError("`path` is of one recipe's network; give `weights` DIR to several")
    data = dict(arguments.data)
    common = data.pop(None, None)
    return Places(arguments.path, arguments.weights, common, arguments.output_dir, data)


def _parse_folder(text: str) -> tuple[str | None, Path]:
    """Return the data set that is named in front of a folder, if one is, and the folder."""
    name, separator, folder = text.partition("=")
    return (name, Path(folder)) if separator and name in DATASETS else (None, Path(text))
