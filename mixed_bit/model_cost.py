"""Print size and BOPs of a network under a bit configuration."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
from typing import Any

from ompq.bitconfig import QUANT_TYPES, Assignment, resolve
from ompq.graph import trace
from ompq.options import Parser, add_input_size, add_network_options
from ompq.runtime import run_script
from ompq.zoo import load_network


def build_parser() -> argparse.ArgumentParser:
    """All options of the script."""
    parser = Parser(prog="model_cost.py", description=__doc__)
    add_network_options(parser, "--model", "-a", "--arch")
    group = parser.add_argument_group("configuration")
    choice = group.add_mutually_exclusive_group(required=True)
    choice.add_argument("--quant_scheme", metavar="NAME", help="a published scheme or uniformN")
    choice.add_argument(
        "--bit_cfg", metavar="LIST|FILE", help='a list such as "[4, 3, 8]" or a bit_config.json'
    )
    group.add_argument(
        "--quant_type", choices=sorted(QUANT_TYPES), default="QAT", help="what the list covers"
    )
    group.add_argument("--act_bits", type=int, help="activation bits (default: the scheme's, or 8)")
    add_input_size(group)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def model_cost(
    model: str,
    configuration: str,
    quant_type: str,
    *,
    act_bits: int | None = None,
    input_size: int | None = None,
    **load_options: Any,
) -> Assignment:
    """Width, size and BOPs of every group of `model` under `configuration`.

    Args:
        model: name for `ompq.zoo.load_network`, which gets `load_options` too.
        configuration: what `ompq.bitconfig.resolve` reads.
        quant_type: `QAT` or `PTQ`.
        act_bits: activation bits; None for the scheme's own.
        input_size: side of the square images; None for the network's own.

    Raises:
        OmpqError: an unknown network or scheme, or a list that does not fit.
    """
    network = load_network(model, **load_options)
    side = input_size or network.preprocess.input_size
    graph = trace(network.module, (3, side, side))
    return resolve(configuration, graph.groups, quant_type, act_bits=act_bits)


def to_json(assignment: Assignment) -> dict[str, Any]:
    """What `--json` prints; a published scheme's BOPs are the published ones."""
    rows = zip(assignment.groups, assignment.widths, assignment.activations, strict=True)
    note = {}
    if assignment.published_ops:
        layers = ", ".join(assignment.published_ops)
        note = {
            "bops_g_by_formula": assignment.bops_g,
            "note": f"bops_g is the published figure, which counts {layers} otherwise",
        }
    return {
        "model_size_mb": assignment.size_mb,
        "bops_g": assignment.published_bops_g,
        **note,
        "groups": [
            {
                "layers": list(group.layers),
                "bits": width,
                "act_bits": activation,
                "params": group.params,
                "ops": group.ops,
            }
            for group, width, activation in rows
        ],
    }


def print_table(assignment: Assignment) -> None:
    """One row per group, then the totals."""
    print(f"{'group':<40} {'params':>10} {'Mops':>9} {'bits':>5} {'act':>4}")
    for row in to_json(assignment)["groups"]:
        name = " + ".join(row["layers"])
        mega_ops = row["ops"] / 1e6
        print(
            f"{name:<40} {row['params']:>10} {mega_ops:>9.2f} {row['bits']:>5} {row['act_bits']:>4}"
        )
    print(
        f"size {assignment.size_mb:.4f} MB (float {assignment.float_size_mb:.4f} MB), "
        f"BOPs {assignment.published_bops_g:.2f} G"
    )
    if assignment.published_ops:
        layers = ", ".join(assignment.published_ops)
        print(
            f"note: the published BOPs count {layers} otherwise; by the formula they are "
            f"{assignment.bops_g:.2f} G"
        )


def run() -> None:
    """Parse, compute, print."""
    arguments = build_parser().parse_args()
    assignment = model_cost(
        arguments.model,
        arguments.quant_scheme or arguments.bit_cfg,
        arguments.quant_type,
        act_bits=arguments.act_bits,
        input_size=arguments.input_size,
        path=arguments.path,
        pretrained=arguments.pretrained,
        num_classes=arguments.num_classes,
    )
    if arguments.json:
        print(json.dumps(to_json(assignment)))
    else:
        print_table(assignment)


def main() -> None:
    """Entry point of the console command."""
    run_script(run)


if __name__ == "__main__":
    main()
