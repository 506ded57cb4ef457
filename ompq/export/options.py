"""Command-line options of the export."""

from __future__ import annotations

import argparse
from pathlib import Path

from ompq.data import BACKENDS, DATASETS
from ompq.errors import OmpqError
from ompq.options import Parser, add_target
from ompq.values import natural, positive

FORMATS = ("packed", "onnx", "c", "web")


def build_parser() -> Parser:
    """Build the parser with all options of the script."""
    parser = Parser(
        prog="ompq-export",
        description="Export a quantized network: packed bits, ONNX, C, a web page. What is written "
        "is run first, and compared with the network of integers.",
        fields={"folder": "output_dir"},
    )
    parser.add_argument(
        "source",
        type=Path,
        nargs="?",
        metavar="DIR",
        help="folder that ompq-ptq or ompq-qat wrote, or its file",
    )
    group = parser.add_argument_group("what to write")
    group.add_argument("--to", choices=FORMATS, help="kind of file")
    group.add_argument(
        "--packed", action="store_true", help="with --to onnx: weights as bits, unpacked at load"
    )
    group.add_argument(
        "--integer",
        action="store_true",
        help="with --to onnx: integers alone, every logit to the bit, slower",
    )
    group.add_argument(
        "--entropy",
        action="store_true",
        help="with --to packed: weights coded by their frequencies, where that is smaller",
    )
    add_target(group, "a network that it does not compute is refused")
    group.add_argument(
        "--output_dir", type=Path, help="folder for the files (default: that of the network)"
    )
    group.add_argument(
        "--verify",
        type=Path,
        metavar="FILE",
        help="run an exported file on the test images beside it instead, and compare",
    )
    group = parser.add_argument_group("images to compare on")
    group.add_argument(
        "--num_images", type=positive, default=64, help="images; 8 of them stay beside a file"
    )
    group.add_argument(
        "--dataset",
        choices=list(DATASETS),
        help="data set (default: that of the run that quantized, else random pixels)",
    )
    group.add_argument("--data", type=Path, help="folder of the data set")
    group.add_argument("--loader", choices=BACKENDS, default="auto", help="decoder of images")
    group.add_argument("--workers", "-j", type=natural, default=2, help="threads that decode")
    return parser


def check_verification(arguments: argparse.Namespace) -> None:
    """Refuse options that go with writing, beside the file to verify.

    Raises:
        OmpqError: There is one; names it.
    """
    parser: Parser = arguments.parser
    for name, value in vars(arguments).items():
        if name not in ("parser", "verify") and value != parser.get_default(name):
            given = "DIR" if name == "source" else f"--{name}"
            raise OmpqError(
                f"--verify FILE stands alone: it takes the images beside the file and writes "
                f"nothing; leave out {given}"
            )


def choose_targets(arguments: argparse.Namespace) -> list[str]:
    """Return the names of the targets that the command line asks for.

    Raises:
        OmpqError: Options that do not go together.
    """
    if arguments.source is None or arguments.to is None:
        raise OmpqError("give the folder of a quantized network and --to, or --verify FILE")
    if (arguments.packed or arguments.integer) and arguments.to != "onnx":
        raise OmpqError("--packed and --integer go with --to onnx")
    if arguments.entropy and arguments.to != "packed":
        raise OmpqError("--entropy goes with --to packed")
    if arguments.to == "packed":
        return ["packed-entropy" if arguments.entropy else "packed"]
    if arguments.to == "onnx":
        chosen = {"onnx-packed": arguments.packed, "onnx-integer": arguments.integer}
        return [name for name, asked in chosen.items() if asked] or ["onnx"]
    return [arguments.to]
