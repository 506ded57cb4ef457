"""What the bit search costs beyond the forward pass, beside the literal definition.

For each network: seconds of the plain forward pass, of the Gram matrices and the orthogonality
matrix computed on the way, and of the integer program; the literal definition (both Gram matrices
recomputed for every pair, features kept) on the same images; peak memory above the plain pass.
Medians over repeated runs in one process; quote the ratios.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import peak_memory, seconds_of
from mixed_bit.budgets import listed_groups
from mixed_bit.features import Shard
from mixed_bit.search import SearchSettings, search
from ompq.bitconfig import uniform
from ompq.files import write_json
from ompq.graph import NetworkGraph, run_with_taps, trace
from ompq.options import Parser, add_run_options
from ompq.runtime import resolve_device, run_script, seed_everything, versions
from ompq.zoo import load_network

NETWORKS = {"resnet18": "QAT", "resnet50": "QAT", "mobilenet_v2": "PTQ"}


def build_parser() -> argparse.ArgumentParser:
    """All options of the benchmark."""
    parser = Parser(prog="bit_search.py", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="which networks")
    parser.add_argument("--num_images", type=int, default=64, help="images of 224×224")
    parser.add_argument("--repeats", type=int, default=3, help="runs whose median is taken")
    parser.add_argument("--no_literal", action="store_true", help="skip the literal definition")
    add_run_options(parser, "benchmark_output")
    return parser


def literal_orthogonality(features: list[Tensor]) -> Tensor:
    """The definition as written: for every pair both Gram matrices, centred, and their product."""
    count = features[0].shape[0]
    centring = torch.eye(count) - torch.ones(count, count) / count
    matrix = torch.zeros(len(features), len(features))
    for i, first in enumerate(features):
        for j, second in enumerate(features):
            one = centring @ (first @ first.T) @ centring
            two = centring @ (second @ second.T) @ centring
            matrix[i, j] = (one * two).sum() / (one.norm() * two.norm())
    return matrix


def measure(name: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All figures of one network."""
    module = load_network(name).module.to(device)
    graph = trace(module, (3, 224, 224))
    images = torch.randn(arguments.num_images, 3, 224, 224, device=device)
    quant_type = NETWORKS.get(name, "PTQ")
    budget = uniform(graph.groups, 6 if quant_type == "QAT" else 3).size_mb
    settings = SearchSettings(quant_type, size_mb=budget)
    groups = listed_groups(graph.groups, quant_type)

    def forward() -> None:
        with torch.inference_mode():
            module(images)

    def find() -> dict[str, float]:
        return search(graph, [Shard(images, len(images))], settings).seconds

    forward()
    find()
    forwards, searches = [], []
    for _ in range(arguments.repeats):
        forwards.append(seconds_of(forward, device))
        searches.append(find())
    figures: dict[str, Any] = {
        "network": name,
        "groups": len(groups),
        "forward": median(forwards),
        "orthogonality": median(run["orthogonality"] for run in searches),
        "solve": median(run["solve"] for run in searches),
        "total": median(run["total"] for run in searches),
    }
    beyond = figures["orthogonality"] + figures["solve"]
    figures["beyond / forward"] = beyond / figures["forward"]
    figures["memory MB"] = peak_memory(find, device) - peak_memory(forward, device)
    largest, tensors = _largest_feature(graph, [group.tap for group in groups], images)
    figures["largest feature MB"] = largest
    if not arguments.no_literal:
        figures["literal"] = seconds_of(lambda: literal_orthogonality(tensors()), device)
        figures["literal / orthogonality"] = figures["literal"] / figures["orthogonality"]
    return figures


def _largest_feature(
    graph: NetworkGraph, taps: list[str], images: Tensor
) -> tuple[float, Callable[[], list[Tensor]]]:
    sizes: list[int] = []
    run_with_taps(graph, images[:1], taps, lambda _, value: sizes.append(value.numel()))

    def features() -> list[Tensor]:
        kept: list[Tensor] = []
        run_with_taps(graph, images, taps, lambda _, value: kept.append(value.flatten(1).clone()))
        return [value.cpu() for value in kept]

    return max(sizes) * len(images) * 4 / 2**20, features


def run() -> None:
    """Measure and print one row per network."""
    arguments = build_parser().parse_args()
    seed_everything(arguments.seed)
    device = resolve_device(arguments.device)
    rows = []
    print(f"{arguments.num_images} images, {torch.get_num_threads()} threads, {device}")
    for name in arguments.networks:
        rows.append(measure(name, arguments, device))
        print(
            "  ".join(
                f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()
            ),
            flush=True,
        )
    file = arguments.output_dir / "bit_search.json"
    write_json(file, {"device": str(device), "versions": versions(), "rows": rows})
    print(f"written to {file}")


if __name__ == "__main__":
    run_script(run)
