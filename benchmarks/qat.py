"""What a step of quantization-aware training costs beside one of the float network.

For every network and input: seconds of forward, backward and update of the float network with
batch norm in training, and of the quantized one, with batch norm in training and frozen; and the
memory that each keeps for its backward pass. Steps alternate within one process, medians are
compared; quote the ratios.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.measuring import saved_memory, seconds_of
from ompq.bitconfig import uniform
from ompq.files import write_json
from ompq.fixed_point import Scheme, to_integers
from ompq.graph import trace
from ompq.options import Parser, add_run_options
from ompq.runtime import resolve_device, run_script, seed_everything, versions
from ompq.zoo import load_network
from QAT.start import calibrate

WIDTH, ACT_WIDTH = 4, 8
# Side of the images, and how many a step takes.
INPUTS = ((224, 8), (32, 32))


def build_parser() -> argparse.ArgumentParser:
    """All options of the benchmark."""
    parser = Parser(prog="qat.py", description=__doc__)
    parser.add_argument(
        "--networks", nargs="+", default=["resnet18", "mobilenet_v2"], help="which networks"
    )
    parser.add_argument("--steps", type=int, default=15, help="steps of each kind")
    add_run_options(parser, "benchmark_output")
    return parser


def stepping(module: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """One training step of a network."""
    optimizer = torch.optim.SGD(module.parameters(), 1e-4, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        loss = cross_entropy(module(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def measure(name: str, side: int, count: int, steps: int, device: torch.device) -> dict[str, Any]:
    """Medians of the three kinds of step, and their ratios."""
    images = torch.randn(count, 3, side, side, device=device)
    loaded = load_network(name)
    labels = torch.randint(loaded.num_classes, (count,), device=device)
    float_network = loaded.module.to(device).train()
    kinds = {"float": stepping(float_network, images, labels)}
    for kind in ("quantized", "frozen"):
        graph = trace(load_network(name).module.to(device), (3, side, side))
        widths = uniform(graph.groups, WIDTH, ACT_WIDTH)
        network = to_integers(graph, widths.layer_bits(), widths.layer_act_bits(), Scheme())
        calibrate(network, [images], device)
        if kind == "frozen":
            network.freeze_norms()
        kinds[kind] = stepping(network.module.train(), images, labels)
    spent: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(steps + 2):
        for kind, step in kinds.items():
            seconds = seconds_of(step, device)
            if number > 1:
                spent[kind].append(seconds)
    row: dict[str, Any] = {"network": name, "side": side, "batch": count}
    for kind, step in kinds.items():
        row[f"{kind} ms"] = median(spent[kind]) * 1e3
        row[f"{kind} memory MB"] = saved_memory(step)
    for kind in ("quantized", "frozen"):
        pairs = zip(spent[kind], spent["float"], strict=True)
        row[f"{kind} / float"] = median(ours / plain for ours, plain in pairs)
    return row


def run() -> None:
    """Measure and print one line per network and input."""
    arguments = build_parser().parse_args()
    seed_everything(arguments.seed)
    device = resolve_device(arguments.device)
    rows = []
    for name in arguments.networks:
        for side, count in INPUTS:
            row = measure(name, side, count, arguments.steps, device)
            rows.append(row)
            print(
                f"{name} {side}×{side} batch {count} on {device}: float {row['float ms']:.0f} ms, "
                f"quantized {row['quantized / float']:.2f}×, with fixed batch norm "
                f"{row['frozen / float']:.2f}×; kept for the backward pass "
                f"{row['float memory MB']:.0f}, "
                f"{row['quantized memory MB']:.0f}, {row['frozen memory MB']:.0f} MB",
                flush=True,
            )
    file = arguments.output_dir / "qat.json"
    write_json(file, {"device": str(device), "versions": versions(), "rows": rows})
    print(f"written to {file}")


if __name__ == "__main__":
    run_script(run)
