"""Measure how long every layer takes in ONNX Runtime, in float and on 8 bits, for --latency."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse

from mixed_bit.layer_times import INTEGER_BITS, LayerTime, layer_times, require_onnx
from ompq.errors import OmpqError
from ompq.files import write_json
from ompq.graph import trace
from ompq.options import Parser, add_input_size, add_network_options
from ompq.runtime import progress, run_script
from ompq.widths import FLOAT_BITS
from ompq.zoo import load_network


def build_parser() -> argparse.ArgumentParser:
    """All options of the script."""
    parser = Parser(prog="measure_latency.py", description=__doc__)
    add_network_options(parser, "--model", "-a", "--arch")
    group = parser.add_argument_group("measurement")
    add_input_size(group)
    group.add_argument("--batch_size", type=int, default=1, help="images at a time")
    group.add_argument("--repeats", type=int, default=20, help="runs of every layer and form")
    group.add_argument("--threads", type=int, default=0, help="0: one per core")
    group.add_argument(
        "--output", type=Path, default=Path("latency.json"), metavar="FILE", help="the table"
    )
    return parser


def measure(arguments: argparse.Namespace) -> list[LayerTime]:
    """Everything the script does but printing and writing.

    Args:
        arguments: of `build_parser`.
    """
    for name, least in (("batch_size", 1), ("repeats", 4), ("threads", 0)):
        if getattr(arguments, name) < least:
            raise OmpqError(f"--{name} {getattr(arguments, name)}: give {least} or more")
    require_onnx()
    network = load_network(
        arguments.model,
        path=arguments.path,
        pretrained=arguments.pretrained,
        num_classes=arguments.num_classes,
    )
    side = arguments.input_size or network.preprocess.input_size
    graph = trace(network.module, (3, side, side))
    times = layer_times(
        graph,
        batch_size=arguments.batch_size,
        repeats=arguments.repeats,
        threads=arguments.threads,
    )
    return list(progress(times, "layers", len(graph.layers)))


def print_times(times: list[LayerTime]) -> None:
    """One row per layer, then the totals."""
    sums = dict.fromkeys((FLOAT_BITS, INTEGER_BITS), 0.0)
    for one in times:
        for width in sums:
            sums[width] += one.milliseconds[width]
    print(f"{'layer':<40} {'float ms':>9} {'8 bits ms':>9} {'faster':>7}")
    for one in [*times, LayerTime("all layers", sums)]:
        in_float, in_integers = one.milliseconds[FLOAT_BITS], one.milliseconds[INTEGER_BITS]
        faster = in_float / in_integers
        print(f"{one.layer:<40} {in_float:>9.4f} {in_integers:>9.4f} {faster:>6.2f}×")


def run() -> None:
    """Parse, measure, write, print."""
    arguments = build_parser().parse_args()
    times = measure(arguments)
    table = {
        one.layer: {str(bits): round(value, 6) for bits, value in sorted(one.milliseconds.items())}
        for one in times
    }
    write_json(arguments.output, table)
    print_times(times)
    print(f"written to {arguments.output}, for feature_extract.py --latency_table")


def main() -> None:
    """Entry point of the console command."""
    run_script(run)


if __name__ == "__main__":
    main()
