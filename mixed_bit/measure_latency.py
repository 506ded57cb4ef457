"""Measure how long every layer takes in ONNX Runtime, in float and on 8 bits."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from ompq.script import interruptible_imports, run_script

with interruptible_imports():
    import argparse

    from mixed_bit.latency.onnx_timing import (
        INTEGER_BITS,
        LayerTime,
        require_onnx,
        time_layers,
    )
    from mixed_bit.options import build_latency_parser as build_parser
    from mixed_bit.options import check_at_least
    from ompq.cost import FLOAT_BITS
    from ompq.data import find_input_shape
    from ompq.files import write_json
    from ompq.graph import trace
    from ompq.runtime import progress
    from ompq.zoo import load_network


def measure(arguments: argparse.Namespace) -> list[LayerTime]:
    """Do everything that the script does but printing and writing.

    Args:
        arguments: Command line of `build_parser`.
    """
    check_at_least(arguments, batch_size=1, repeats=4, threads=0)
    require_onnx()
    network = load_network(
        arguments.model,
        path=arguments.path,
        pretrained=arguments.pretrained,
        num_classes=arguments.num_classes,
    )
    arguments.parser.print_notes(network.notes)
    graph = trace(network.module, find_input_shape(network, arguments.input_size))
    times = time_layers(
        graph,
        batch_size=arguments.batch_size,
        repeats=arguments.repeats,
        threads=arguments.threads,
    )
    return list(progress(times, "layers", len(graph.layers)))


def print_times(times: list[LayerTime]) -> None:
    """Print one row per layer, then the totals."""
    sums = dict.fromkeys((FLOAT_BITS, INTEGER_BITS), 0.0)
    for one in times:
        for width in sums:
            sums[width] += one.milliseconds[width]
    print(f"{'layer':<40} {'float ms':>9} {'8 bits ms':>9} {'faster':>7}")
    for one in [*times, LayerTime("all layers", sums)]:
        in_float, in_integers = one.milliseconds[FLOAT_BITS], one.milliseconds[INTEGER_BITS]
        faster = in_float / in_integers
        print(f"{one.layer:<40} {in_float:>9.4f} {in_integers:>9.4f} {faster:>6.2f}×")


def run(arguments: argparse.Namespace) -> None:
    """Measure, write, print."""
    times = measure(arguments)
    table = {
        one.layer: {str(bits): round(value, 6) for bits, value in sorted(one.milliseconds.items())}
        for one in times
    }
    write_json(arguments.output, table)
    print_times(times)
    print(f"written to {arguments.output}, a latency table for feature_extract.py")


def main() -> None:
    """Run the console command."""
    run_script(build_parser, run)


if __name__ == "__main__":
    main()
