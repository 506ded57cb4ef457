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

from benchmarks.measuring import measure_peak_memory, measure_seconds
from benchmarks.rerunning import quantize_rerunning
from ompq.assignment import Assignment, uniform
from ompq.files import write_json
from ompq.graph import NetworkGraph, extract_subgraph, split_into_subgraphs, trace
from ompq.options import Parser, add_run_options
from ompq.quantized import QuantizedNetwork, make_quantizable
from ompq.quantizers import lp_scale
from ompq.runtime import resolve_device, seed_everything, versions
from ompq.script import run_script
from ompq.zoo import load_network
from PTQ.activation_cache import ActivationCache
from PTQ.examples import Examples
from PTQ.quantize import quantize_network
from PTQ.reconstruct import reconstruct_weights
from PTQ.resume import FinishedBlocks
from PTQ.settings import Settings

WIDTH = 3
BATCH = 32
REPEATS = 3


def build_parser() -> Parser:
    """Build the parser with all options of the benchmark."""
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


def search_scale_in_loop(channel: Tensor, bits: int, p: float = 2.4) -> float:
    """Search the scale of one channel that has the least L_p error, candidate after candidate.

    >>> round(search_scale_in_loop(torch.linspace(0, 3, 4), bits=2), 6)
    1.0

    Args:
        channel: Weights of the channel, in one dimension.
        bits: Width of the integers.
        p: Power p of the error.
    """
    best, chosen = float("inf"), 0.0
    low, high = min(float(channel.min()), 0.0), max(float(channel.max()), 0.0)
    for step in range(80):
        shrink = 1 - 0.01 * step
        scale = (high - low) * shrink / (2**bits - 1)
        zero = round(-low * shrink / scale)
        integers = torch.clamp(torch.round(channel / scale) + zero, 0, 2**bits - 1) - zero
        error = float((channel - integers * scale).abs().pow(p).sum())
        if error < best:
            best, chosen = error, scale
    return chosen


def search_scales_in_loop(channels: Tensor) -> list[float]:
    """Search the scale of every channel, one after another."""
    return [search_scale_in_loop(channel, WIDTH) for channel in channels]


@torch.no_grad()
def search_scales_in_steps(channels: Tensor, bits: int, p: float = 2.4) -> Tensor:
    """Search the scales of all channels at once, candidate after candidate: the fair baseline.

    >>> search_scales_in_steps(torch.linspace(0, 3, 4)[None], bits=2)
    tensor([1.])

    Args:
        channels: Weights, channels × values.
        bits: Width of the integers.
        p: Power p of the error.
    """
    low, high = channels.amin(dim=1).clamp_max(0), channels.amax(dim=1).clamp_min(0)
    best, chosen = torch.full_like(low, torch.inf), torch.zeros_like(low)
    for step in range(80):
        shrink = 1 - 0.01 * step
        scale = (high - low) * shrink / (2**bits - 1)
        zero = torch.round(-low * shrink / scale)[:, None]
        integers = torch.round(channels / scale[:, None]).add_(zero).clamp_(0, 2**bits - 1)
        rounded = integers.sub_(zero).mul_(scale[:, None])
        error = rounded.sub_(channels).abs_().pow_(p).sum(dim=1)
        chosen = torch.where(error < best, scale, chosen)
        best = torch.minimum(error, best)
    return chosen


def measure_scale_search(
    graph: NetworkGraph, channels: int, device: torch.device
) -> dict[str, float]:
    """Measure the seconds of the scale search for all layers, beside two baselines.

    The fair one takes all channels of a layer at once, candidate after candidate; the other loops
    over channels and candidates, as published code does.

    Args:
        graph: Network whose weights get scales.
        channels: Channels of every layer that the loop runs over; its seconds are extrapolated.
        device: Device of the network.
    """
    weights = [graph.layer_module(name).weight.detach().flatten(1) for name in graph.layers]
    ours = median(
        measure_seconds(lambda: [lp_scale(weight, WIDTH) for weight in weights], device)
        for _ in range(REPEATS)
    )
    steps = median(
        measure_seconds(lambda: [search_scales_in_steps(w, WIDTH) for w in weights], device)
        for _ in range(REPEATS)
    )
    loop = 0.0
    for weight in weights:
        some = weight[:channels]
        spent = measure_seconds(partial(search_scales_in_loop, some), device)
        loop += spent * len(weight) / len(some)
    return {
        "scale search": ours,
        "scale steps": steps,
        "steps / search": steps / ours,
        "scale loop": loop,
        "loop / search": loop / ours,
    }


def run_float_step(
    block: GraphModule, layers: tuple[str, ...], inputs: Tensor, target: Tensor
) -> None:
    """Run a forward and a backward pass of a float block, with gradients of its weights.

    Args:
        block: Float block.
        layers: Names of the layers whose weights get gradients.
        inputs: Inputs of the block, n × ….
        target: Target of the block's output, n × ….
    """
    weights = [block.get_parameter(f"{layer}.weight") for layer in layers]
    for weight in weights:
        weight.requires_grad_(True)
    # A copy: a block may change what it is given in place.
    (block(inputs.clone())[0] - target).square().mean().backward()
    for weight in weights:
        weight.grad = None
        weight.requires_grad_(False)


def measure_steps(
    network: QuantizedNetwork, images: Tensor, steps: int, device: torch.device
) -> list[dict[str, Any]]:
    """Measure the milliseconds of a step of every block, beside those of the float block.

    Args:
        network: Prepared network that is not quantized yet.
        images: Calibration images, n × channels × height × width.
        steps: Steps that are timed per block.
        device: Device of the network.
    """
    rows = []
    values = images
    for block in split_into_subgraphs(network.graph, "block"):
        module = extract_subgraph(network.module, block)
        with torch.no_grad():
            target = torch.cat([module(piece.clone())[0] for piece in values.split(BATCH)])
        examples = Examples([values], [values], [target], [None], device)
        bits = dict.fromkeys(block.layers, WIDTH)
        settings = Settings(
            weight_iterations=steps, batch_size=BATCH, updates_per_step=1, warmup=0.0
        )
        ours = _measure_step(module, examples, bits, settings, device)
        step = partial(run_float_step, module, block.layers, values[:BATCH], target[:BATCH])
        plain = [measure_seconds(step, device) for _ in range(max(3, steps))]
        rows.append({"block": block.name, "ours": ours * 1e3, "plain": median(plain) * 1e3})
        values = target
    return rows


def _measure_step(
    module: GraphModule,
    examples: Examples,
    bits: dict[str, int],
    settings: Settings,
    device: torch.device,
) -> float:
    """Measure the seconds of a step by what more steps cost: what surrounds them does not count."""

    def measure_run(steps: int) -> float:
        chosen = replace(settings, weight_iterations=steps)
        return measure_seconds(
            lambda: reconstruct_weights(module, examples, bits, chosen, "timing"), device
        )

    few = 2
    many = settings.weight_iterations + few
    measure_run(few)
    spent = [max(0.0, measure_run(many) - measure_run(few)) for _ in range(REPEATS)]
    return median(spent) / (many - few)


@torch.no_grad()
def measure_delivery(
    network: QuantizedNetwork, images: Tensor, device: torch.device
) -> dict[str, float]:
    """Measure the seconds that bring all images to every block, in one pass and in one per block.

    Args:
        network: Prepared network.
        images: Calibration images, n × channels × height × width.
        device: Device of the network.
    """
    blocks = [
        extract_subgraph(network.module, block)
        for block in split_into_subgraphs(network.graph, "block")
    ]

    def run_once() -> None:
        values = images
        for block in blocks:
            values = torch.cat([block(piece.clone())[0] for piece in values.split(BATCH)])

    def run_anew() -> None:
        for count in range(1, len(blocks) + 1):
            for piece in images.split(BATCH):
                value = piece.clone()
                for block in blocks[:count]:
                    value = block(value)[0]

    one, many = measure_seconds(run_once, device), measure_seconds(run_anew, device)
    return {"one pass": one, "a pass per block": many, "ratio": many / one}


def quantize(
    graph: NetworkGraph, assignment: Assignment, images: Tensor, settings: Settings
) -> None:
    """Quantize a network, activations included, with finished blocks in a folder of their own."""
    with TemporaryDirectory() as folder:
        quantize_network(
            graph,
            assignment,
            images,
            settings,
            cache=ActivationCache("auto", images.device, Path(folder)),
            finished=FinishedBlocks(Path(folder) / "state", {}, resume=False),
            say=lambda _: None,
        )


def measure_whole_runs(
    name: str, arguments: argparse.Namespace, device: torch.device
) -> dict[str, float]:
    """Measure the seconds of a whole quantization, in one pass and with a pass per block.

    Args:
        name: Name of the network.
        arguments: Arguments of `build_parser`.
        device: Device to compute on.
    """
    size, count = arguments.total_size, arguments.total_images
    weight_steps, act_steps = arguments.total_steps
    # Networks that are run anew see no copies of the images.
    settings = Settings(
        weight_iterations=weight_steps,
        act_iterations=act_steps,
        batch_size=BATCH,
        vary_images=False,
        correct_biases=False,
    )
    graph = trace(load_network(name).module.to(device), (3, size, size))
    images = torch.randn(count, 3, size, size, device=device)
    task = graph, uniform(graph.groups, WIDTH), images, settings
    one_pass = measure_seconds(partial(quantize, *task), device)
    anew = measure_seconds(partial(quantize_rerunning, *task), device)
    return {"total": one_pass, "total anew": anew, "total ratio": anew / one_pass}


def measure(name: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure all figures of one network.

    Args:
        name: Name of the network.
        arguments: Arguments of `build_parser`.
        device: Device to compute on.
    """
    size = arguments.input_size
    graph = trace(load_network(name).module.to(device), (3, size, size))
    assignment = uniform(graph.groups, WIDTH)
    network = make_quantizable(graph, assignment)
    images = torch.randn(arguments.num_images, 3, size, size, device=device)
    steps = arguments.steps
    few = Settings(
        weight_iterations=steps, act_iterations=steps, batch_size=BATCH, vary_images=False
    )
    scales = measure_scale_search(network.graph, arguments.literal_channels, device)
    blocks = measure_steps(network, images, steps, device)
    return {
        "network": name,
        **scales,
        **measure_delivery(network, images, device),
        "peak memory MB": measure_peak_memory(
            partial(quantize, graph, assignment, images, few), device
        ),
        **measure_whole_runs(name, arguments, device),
        "step / plain": sum(b["ours"] for b in blocks) / sum(b["plain"] for b in blocks),
        "blocks": blocks,
    }


def print_row(row: dict[str, Any]) -> None:
    """Print the figures of one network, block by block."""
    print(
        f"{row['network']}: scale search {row['scale search']:.2f} s, all channels at once "
        f"{row['scale steps']:.2f} s ({row['steps / search']:.1f}×), loop "
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


def run(arguments: argparse.Namespace) -> None:
    """Measure, print, and write `ptq.json`.

    Args:
        arguments: Arguments of `build_parser`.
    """
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
    run_script(build_parser, run)
