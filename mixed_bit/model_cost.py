"""Print size and BOPs of a network under a bit configuration."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from ompq.script import interruptible_imports, run_script

with interruptible_imports():
    import argparse
    import json
    from typing import Any

    from mixed_bit.options import build_cost_parser as build_parser
    from ompq.assignment import Assignment, resolve
    from ompq.data import find_input_shape
    from ompq.graph import trace
    from ompq.zoo import load_network


def measure_cost(
    model: str,
    configuration: str,
    quant_type: str,
    *,
    act_bits: int | None = None,
    input_size: int | None = None,
    **load_options: Any,
) -> Assignment:
    """Return width, size and BOPs of every group of `model` under `configuration`.

    Args:
        model: Name for `ompq.zoo.load_network`, which gets `load_options` too.
        configuration: Text that `ompq.assignment.resolve` reads.
        quant_type: `QAT` or `PTQ`.
        act_bits: Activation bits; None for the scheme's own.
        input_size: Side of the square images; None for the network's own.

    Raises:
        OmpqError: An unknown network or scheme, or a list that does not fit.
    """
    network = load_network(model, **load_options)
    graph = trace(network.module, find_input_shape(network, input_size))
    return resolve(configuration, graph.groups, quant_type, act_bits=act_bits)


def describe_cost(assignment: Assignment) -> dict[str, Any]:
    """Return JSON-ready figures; a published scheme's BOPs are the published ones."""
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
    """Print one row per group, then the totals."""
    print(f"{'group':<40} {'params':>10} {'Mops':>9} {'bits':>5} {'act':>4}")
    for row in describe_cost(assignment)["groups"]:
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


def run(arguments: argparse.Namespace) -> None:
    """Compute, print."""
    assignment = measure_cost(
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
        print(json.dumps(describe_cost(assignment)))
    else:
        print_table(assignment)


def main() -> None:
    """Run the console command."""
    run_script(build_parser, run)


if __name__ == "__main__":
    main()
