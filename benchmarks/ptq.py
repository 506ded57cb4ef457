"""What post-training quantization costs beside the float network it starts from.

For every network: the scale search beside a loop over channels and candidates; a step of
reconstruction beside a plain forward and backward pass of the same float block on as many images;
its peak memory; what it spends on bringing the calibration images to every block, in one pass or by
running the network anew for each; and the seconds of a whole run, done in one pass and done anew.
Medians within one process; quote the ratios.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from dataclasses import replace
from functools import partial
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from benchmarks.measuring import peak_memory, seconds_of
from benchmarks.rerunning import quantize_rerunning
from ompq.bitconfig import Assignment, uniform
from ompq.files import write_json
from ompq.graph import NetworkGraph, extract, parts_of, trace
from ompq.options import Parser, add_run_options
from ompq.quantized import QuantizedNetwork, prepare
from ompq.quantizers import lp_scale
from ompq.runtime import resolve_device, run_script, seed_everything, versions
from ompq.zoo import load_network
from PTQ.cache import Cache
from PTQ.reconstruct import Examples, reconstruct_weights
from PTQ.recovery import Recovery
from PTQ.settings import Settings
from PTQ.sweep import quantize_network

WIDTH, BATCH, REPEATS = 3, 32, 3


def build_parser() -> argparse.ArgumentParser:
    """All options of the benchmark."""
    parser = Parser(prog="ptq.py", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["resnet18"], help="which networks")
    parser.add_argument("--input_size", type=int, default=224, help="side of the images")
    parser.add_argument("--num_images", type=int, default=64, help="calibration images")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed per block")
    parser.add_argument("--literal_channels", type=int, default=16, help="channels of the loop")
    parser.add_argument("--total_images", type=int, default=1024, help="images of the whole run")
    parser.add_argument("--total_size", type=int, default=32, help="side of its images")
    parser.add_argument(
        "--total_steps",
        type=int,
        nargs=2,
        default=[500, 200],
        help="its steps per block: weights, activations",
    )
    add_run_options(parser, "benchmark_output")
    return parser


def literal_scale(channel: Tensor, bits: int, p: float = 2.4) -> float:
    """The scale of one channel, candidate after candidate."""
    best, chosen = float("inf"), 0.0
    low, high = min(float(channel.min()), 0.0), max(float(channel.max()), 0.0)
    for step in range(80):
        shrink = 1 - 0.01 * step
        scale = (high - low) * shrink / (2**bits - 1)
        zero = round(-low * shrink / scale)
        grid = torch.clamp(torch.round(channel / scale) + zero, 0, 2**bits - 1) - zero
        error = float((channel - grid * scale).abs().pow(p).sum())
        if error < best:
            best, chosen = error, scale
    return chosen


def literal_scales(channels: Tensor) -> list[float]:
    """The scale of every channel, one after another."""
    return [literal_scale(channel, WIDTH) for channel in channels]


def scale_search(graph: NetworkGraph, channels: int, device: torch.device) -> dict[str, float]:
    """Seconds for all layers, and what the loop would take, from some channels of every layer."""
    weights = [graph.layer_module(name).weight.detach().flatten(1) for name in graph.layers]
    ours = median(
        seconds_of(lambda: [lp_scale(weight, WIDTH) for weight in weights], device)
        for _ in range(REPEATS)
    )
    loop = 0.0
    for weight in weights:
        some = weight[:channels]
        spent = seconds_of(partial(literal_scales, some), device)
        loop += spent * len(weight) / len(some)
    return {"scale search": ours, "scale loop": loop, "loop / search": loop / ours}


def plain_step(part: GraphModule, layers: tuple[str, ...], inputs: Tensor, target: Tensor) -> None:
    """Forward and backward pass of the float block, with gradients of its weights."""
    weights = [part.get_parameter(f"{layer}.weight") for layer in layers]
    for weight in weights:
        weight.requires_grad_(True)
    (part(inputs.clone())[0] - target).square().mean().backward()
    for weight in weights:
        weight.grad = None
        weight.requires_grad_(False)


def steps_of_blocks(
    network: QuantizedNetwork, images: Tensor, steps: int, device: torch.device
) -> list[dict[str, Any]]:
    """Milliseconds of one step of every block, ours and plain."""
    rows = []
    values = images
    for part in parts_of(network.graph, "block"):
        module = extract(network.module, part)
        with torch.no_grad():
            target = torch.cat([module(piece.clone())[0] for piece in values.split(BATCH)])
        examples = Examples([values], [values], [target], [None], device)
        bits = dict.fromkeys(part.layers, WIDTH)
        settings = Settings(weight_iterations=steps, batch_size=BATCH, warmup=0.0)
        ours = _per_step(module, examples, bits, settings, device)
        step = partial(plain_step, module, part.layers, values[:BATCH], target[:BATCH])
        plain = [seconds_of(step, device) for _ in range(max(3, steps))]
        rows.append({"block": part.name, "ours": ours * 1e3, "plain": median(plain) * 1e3})
        values = target
    return rows


def _per_step(
    module: GraphModule,
    examples: Examples,
    bits: dict[str, int],
    settings: Settings,
    device: torch.device,
) -> float:
    """Seconds of a step: what more steps cost, so that what surrounds them does not count."""

    def spent(steps: int) -> float:
        chosen = replace(settings, weight_iterations=steps)
        return seconds_of(
            lambda: reconstruct_weights(module, examples, bits, chosen, "timing"), device
        )

    spent(2)
    few, many = 2, settings.weight_iterations + 2
    return median(max(0.0, spent(many) - spent(few)) / (many - few) for _ in range(REPEATS))


@torch.no_grad()
def delivery(network: QuantizedNetwork, images: Tensor, device: torch.device) -> dict[str, float]:
    """Seconds to bring all images to every block: once through, and anew for every block."""
    parts = parts_of(network.graph, "block")
    blocks = [extract(network.module, part) for part in parts]

    def once() -> None:
        values = images
        for block in blocks:
            values = torch.cat([block(piece.clone())[0] for piece in values.split(BATCH)])

    def anew() -> None:
        for count in range(1, len(parts) + 1):
            for piece in images.split(BATCH):
                value = piece.clone()
                for block in blocks[:count]:
                    value = block(value)[0]

    one, many = seconds_of(once, device), seconds_of(anew, device)
    return {"one pass": one, "a pass per block": many, "ratio": many / one}


def quantize(
    graph: NetworkGraph, assignment: Assignment, images: Tensor, settings: Settings
) -> None:
    """A whole quantization, activations included, with a folder of its own."""
    with TemporaryDirectory() as folder:
        cache = Cache("auto", images.device, Path(folder))
        recovery = Recovery(Path(folder) / "state", {}, resume=False)
        quantize_network(graph, assignment, images, settings, cache, recovery, say=lambda _: None)


def whole_runs(name: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Seconds of a whole quantization as users run it: in one pass, and anew for every block."""
    size, count = arguments.total_size, arguments.total_images
    weight_steps, act_steps = arguments.total_steps
    settings = Settings(weight_iterations=weight_steps, act_iterations=act_steps, batch_size=BATCH)
    graph = trace(load_network(name).module.to(device), (3, size, size))
    images = torch.randn(count, 3, size, size, device=device)
    task = graph, uniform(graph.groups, WIDTH), images, settings
    one_pass = seconds_of(partial(quantize, *task), device)
    anew = seconds_of(partial(quantize_rerunning, *task), device)
    return {"total": one_pass, "total anew": anew, "total ratio": anew / one_pass}


def measure(name: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All figures of one network."""
    size = arguments.input_size
    graph = trace(load_network(name).module.to(device), (3, size, size))
    assignment = uniform(graph.groups, WIDTH)
    network = prepare(graph, assignment)
    images = torch.randn(arguments.num_images, 3, size, size, device=device)
    steps = arguments.steps
    few = Settings(weight_iterations=steps, act_iterations=steps, batch_size=BATCH)
    scales = scale_search(network.graph, arguments.literal_channels, device)
    blocks = steps_of_blocks(network, images, steps, device)
    return {
        "network": name,
        **scales,
        **delivery(network, images, device),
        "peak memory MB": peak_memory(partial(quantize, graph, assignment, images, few), device),
        **whole_runs(name, arguments, device),
        "step / plain": sum(b["ours"] for b in blocks) / sum(b["plain"] for b in blocks),
        "blocks": blocks,
    }


def print_row(row: dict[str, Any]) -> None:
    """The figures of one network, block by block."""
    print(
        f"{row['network']}: scale search {row['scale search']:.2f} s, loop "
        f"{row['scale loop']:.1f} s ({row['loop / search']:.0f}×); images to all blocks "
        f"{row['one pass']:.2f} s in one pass, {row['a pass per block']:.2f} s with a pass per "
        f"block ({row['ratio']:.1f}×); all blocks' steps {row['step / plain']:.2f}× plain; "
        f"peak memory {row['peak memory MB']:.0f} MB"
    )
    print(
        f"  a whole run: {row['total']:.1f} s in one pass, {row['total anew']:.1f} s with the "
        f"networks run anew for every block ({row['total ratio']:.2f}×)"
    )
    for block in row["blocks"]:
        ratio = block["ours"] / block["plain"]
        print(
            f"  {block['block']:<24} {block['ours']:>8.1f} ms a step, plain "
            f"{block['plain']:>8.1f} ms, {ratio:.2f}×"
        )


def run() -> None:
    """Measure and print."""
    arguments = build_parser().parse_args()
    seed_everything(arguments.seed)
    device = resolve_device(arguments.device)
    print(f"{arguments.input_size}×{arguments.input_size}, batch {BATCH}, {device}", flush=True)
    rows = []
    for name in arguments.networks:
        rows.append(measure(name, arguments, device))
        print_row(rows[-1])
    file = arguments.output_dir / "ptq.json"
    write_json(file, {"device": str(device), "versions": versions(), "rows": rows})
    print(f"written to {file}")


if __name__ == "__main__":
    run_script(run)
