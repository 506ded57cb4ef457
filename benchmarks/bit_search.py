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
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import measure_peak_memory, measure_seconds
from mixed_bit import SearchSettings, search
from ompq.assignment import QUANT_TYPES, uniform
from ompq.files import write_json
from ompq.graph import NetworkGraph, run_with_taps, trace
from ompq.options import Parser, add_run_options
from ompq.runtime import resolve_device, seed_everything, versions
from ompq.script import run_script
from ompq.zoo import load_network

NETWORKS = {"resnet18": "QAT", "resnet50": "QAT", "mobilenet_v2": "PTQ"}


def build_parser() -> Parser:
    """Build the parser with all options of the benchmark."""
    parser = Parser(prog="bit_search.py", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="which networks")
    parser.add_argument("--num_images", type=int, default=64, help="images of 224×224")
    parser.add_argument("--repeats", type=int, default=3, help="runs whose median is taken")
    parser.add_argument("--no_literal", action="store_true", help="skip the literal definition")
    add_run_options(parser, "benchmark_output")
    return parser


def compute_literal_orthogonality(features: list[Tensor]) -> Tensor:
    """Compute the orthogonality matrix as it is defined, with both Gram matrices for every pair.

    >>> feature = torch.tensor([[1.0], [2.0], [4.0]])
    >>> compute_literal_orthogonality([feature, 2 * feature]).round(decimals=4)
    tensor([[1., 1.],
            [1., 1.]])

    Args:
        features: Flattened features of the groups, each n × its own width, float32, on the CPU.

    Returns:
        L × L, float32, for L features.
    """
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
    """Measure all figures of one network.

    Args:
        name: Name of the network.
        arguments: Arguments of `build_parser`.
        device: Device to compute on.
    """
    module = load_network(name).module.to(device)
    graph = trace(module, (3, 224, 224))
    images = torch.randn(arguments.num_images, 3, 224, 224, device=device)
    quant_type = NETWORKS.get(name, "PTQ")
    budget = uniform(graph.groups, 6 if quant_type == "QAT" else 3).size_mb
    settings = SearchSettings(quant_type, size_mb=budget, metric="orm")
    groups = [group for group in graph.groups if QUANT_TYPES[quant_type].takes_part(group)]

    def forward() -> None:
        with torch.inference_mode():
            module(images)

    def find() -> dict[str, float]:
        return search(graph, images, settings).seconds

    forward()
    find()
    forwards, searches = [], []
    for _ in range(arguments.repeats):
        forwards.append(measure_seconds(forward, device))
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
    figures["memory MB"] = measure_peak_memory(find, device) - measure_peak_memory(forward, device)
    taps = [group.tap for group in groups]
    figures["largest feature MB"] = _measure_largest_feature(graph, taps, images)
    if not arguments.no_literal:
        read = partial(_read_features, graph, taps, images)
        figures["literal"] = measure_seconds(lambda: compute_literal_orthogonality(read()), device)
        figures["literal / orthogonality"] = figures["literal"] / figures["orthogonality"]
    return figures


def _measure_largest_feature(graph: NetworkGraph, taps: list[str], images: Tensor) -> float:
    """Return the MB of the largest feature for all images, from a pass of the first one."""
    sizes: list[int] = []
    run_with_taps(graph, images[:1], taps, lambda _, value: sizes.append(value.numel()))
    return max(sizes) * len(images) * 4 / 2**20


def _read_features(graph: NetworkGraph, taps: list[str], images: Tensor) -> list[Tensor]:
    kept: list[Tensor] = []
    # Copies: later layers may change a feature in place.
    run_with_taps(graph, images, taps, lambda _, value: kept.append(value.flatten(1).clone()))
    return [value.cpu() for value in kept]


def run(arguments: argparse.Namespace) -> None:
    """Measure, print one line per network, and write `bit_search.json`.

    Args:
        arguments: Arguments of `build_parser`.
    """
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
    run_script(build_parser, run)
