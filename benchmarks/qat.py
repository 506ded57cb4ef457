"""What a step of quantization-aware training costs beside one of the float network.

For every network and input: seconds of forward, backward and update of the float network with
batch norm in training, and of the quantized one, with batch norm in training, frozen, and with
step sizes that are learned (LSQ); and the memory that each keeps for its backward pass. Steps
alternate within one process, medians are compared; quote the ratios.
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
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.measuring import measure_saved_memory, measure_seconds
from ompq.assignment import uniform
from ompq.files import write_json
from ompq.graph import trace
from ompq.integer import (
    ConversionSettings,
    calibrate,
    convert_to_integers,
    start_learning_steps,
)
from ompq.options import Parser, add_run_options
from ompq.runtime import resolve_device, seed_everything, versions
from ompq.script import run_script
from ompq.zoo import load_network

WIDTH = 4
ACT_WIDTH = 8
QUANTIZED = ("quantized", "frozen", "learned")
# Side of the images, and how many a step takes.
INPUTS = ((224, 8), (32, 32))


def build_parser() -> Parser:
    """Build the parser with all options of the benchmark."""
    parser = Parser(prog="qat.py", description=__doc__)
    parser.add_argument(
        "--networks", nargs="+", default=["resnet18", "mobilenet_v2"], help="which networks"
    )
    parser.add_argument("--steps", type=int, default=15, help="steps of each kind")
    add_run_options(parser, "benchmark_output")
    return parser


def build_step(module: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Build a function that takes one training step of a network.

    Args:
        module: Network in training mode.
        images: n × 3 × height × width, on the network's device.
        labels: n classes, on the network's device.
    """
    optimizer = torch.optim.SGD(module.parameters(), 1e-4, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        loss = cross_entropy(module(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def measure(name: str, side: int, count: int, steps: int, device: torch.device) -> dict[str, Any]:
    """Measure the medians of the four kinds of step, and their ratios.

    Args:
        name: Name of the network.
        side: Side of the images.
        count: Images per step.
        steps: Steps of each kind.
        device: Device to compute on.
    """
    images = torch.randn(count, 3, side, side, device=device)
    loaded = load_network(name)
    labels = torch.randint(loaded.num_classes, (count,), device=device)
    float_network = loaded.module.to(device).train()
    kinds = {"float": build_step(float_network, images, labels)}
    for kind in QUANTIZED:
        graph = trace(load_network(name).module.to(device), (3, side, side))
        widths = uniform(graph.groups, WIDTH, ACT_WIDTH)
        settings = ConversionSettings(learned=kind == "learned")
        network = convert_to_integers(graph, widths.layer_bits(), widths.layer_act_bits(), settings)
        calibrate(network, [images], device)
        if kind == "frozen":
            network.freeze_norms()
        if kind == "learned":
            start_learning_steps(network, settings.rule.per_channel)
        kinds[kind] = build_step(network.module.train(), images, labels)
    spent: dict[str, list[float]] = {kind: [] for kind in kinds}
    # The kinds take turns, so that a busy machine slows all of them; the first two rounds warm up.
    for number in range(steps + 2):
        for kind, step in kinds.items():
            seconds = measure_seconds(step, device)
            if number > 1:
                spent[kind].append(seconds)
    row: dict[str, Any] = {"network": name, "side": side, "batch": count}
    for kind, step in kinds.items():
        row[f"{kind} ms"] = median(spent[kind]) * 1e3
        row[f"{kind} memory MB"] = measure_saved_memory(step)
    for kind in QUANTIZED:
        pairs = zip(spent[kind], spent["float"], strict=True)
        row[f"{kind} / float"] = median(ours / plain for ours, plain in pairs)
    return row


def run(arguments: argparse.Namespace) -> None:
    """Measure, print one line per network and input, and write `qat.json`.

    Args:
        arguments: Arguments of `build_parser`.
    """
    seed_everything(arguments.seed)
    device = resolve_device(arguments.device)
    rows = []
    for name in arguments.networks:
        for side, count in INPUTS:
            row = measure(name, side, count, arguments.steps, device)
            rows.append(row)
            kept = ", ".join(f"{row[kind + ' memory MB']:.0f}" for kind in ("float", *QUANTIZED))
            print(
                f"{name} {side}×{side} batch {count} on {device}: float {row['float ms']:.0f} ms, "
                f"quantized {row['quantized / float']:.2f}×, with fixed batch norm "
                f"{row['frozen / float']:.2f}×, learned steps {row['learned / float']:.2f}×; kept "
                f"for the backward pass {kept} MB",
                flush=True,
            )
    file = arguments.output_dir / "qat.json"
    write_json(file, {"device": str(device), "versions": versions(), "rows": rows})
    print(f"written to {file}")


if __name__ == "__main__":
    run_script(build_parser, run)
