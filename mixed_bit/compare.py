"""Compare every way to allocate bits at equal size, by what really happens to the output."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from ompq.script import interruptible_imports, run_script

with interruptible_imports():
    import argparse
    from collections.abc import Iterator
    from dataclasses import replace
    from typing import Any

    import torch
    from torch import Tensor

    from mixed_bit.comparison.compare_methods import (
        Comparison,
        compare_candidates,
        draw_comparison,
        print_comparison,
        write_comparison,
    )
    from mixed_bit.comparison.outcome import OutcomeEvaluator
    from mixed_bit.feasibility import check_feasible
    from mixed_bit.options import build_compare_parser as build_parser
    from mixed_bit.options import check_at_least
    from mixed_bit.problem import Problem
    from mixed_bit.sensitivity.evaluator import SensitivityEvaluator
    from mixed_bit.sensitivity.features import Shard
    from mixed_bit.settings import SearchSettings
    from ompq.assignment import PINNED_BITS, QUANT_TYPES
    from ompq.cost import BITS_PER_MB, size_bits
    from ompq.data import calibration_images, make_loader, unreadable_note
    from ompq.data.batching import batch_sizes
    from ompq.errors import OmpqError
    from ompq.evaluation import doubt_accuracy
    from ompq.files import lock_folder
    from ompq.graph import NetworkGraph, check_network, trace
    from ompq.options import check_classes, json_ready, load_requested_network, print_images
    from ompq.preprocess import Preprocess
    from ompq.report import add_report
    from ompq.runtime import resolve_device, seed_everything
    from ompq.zoo import RANDOM_WEIGHTS, RANDOM_WEIGHTS_NOTE, Network


def read_sizes(arguments: argparse.Namespace, graph: NetworkGraph) -> list[float]:
    """Read the size budgets in MB, ascending."""
    if arguments.sizes:
        return sorted(set(arguments.sizes))
    takes_part = QUANT_TYPES[arguments.quant_type].takes_part
    params = sum(group.params for group in graph.groups if takes_part(group))
    pinned = [0 if takes_part(group) else PINNED_BITS for group in graph.groups]
    fixed = size_bits(graph.groups, pinned)
    return [(params * mean + fixed) / BITS_PER_MB for mean in sorted(set(arguments.mean_bits))]


def evaluation_images(
    arguments: argparse.Namespace, preprocess: Preprocess, training: Tensor, num_classes: int
) -> tuple[Tensor, Tensor, list[str]]:
    """Return images and labels (−1 without) that outcomes are measured on, and unreadable files.

    `training` are training images, of which the first `num_images` are for the sensitivities;
    accuracy on the others would say nothing, for the network has learned them.
    """
    if arguments.eval_split == "train":
        rest = training[arguments.num_images :]
        if not len(rest):
            raise OmpqError(
                f"`eval_split` train: all {len(training)} images went into the prices; "
                "lower `num_images`"
            )
        return rest, torch.full((len(rest),), -1), []
    loader = make_loader(
        arguments.dataset,
        arguments.data,
        "val",
        preprocess,
        arguments.batch_size,
        seed=arguments.seed,
        workers=arguments.workers,
        backend=arguments.loader,
        num_samples=arguments.num_eval,
        num_classes=num_classes,
    )
    notes = [*loader.notes, *check_classes(loader.num_classes, num_classes)]
    arguments.parser.print_notes(notes)
    images, found = map(torch.cat, zip(*loader, strict=True))
    return images, found, loader.skipped


def compare_from(arguments: argparse.Namespace) -> Comparison:
    """Do everything that the script does but printing the result and writing it.

    Args:
        arguments: Command line of `build_parser`.
    """
    check_at_least(arguments, num_images=2, num_eval=2, batch_size=2, ranked=2, random=0)
    device = resolve_device(arguments.device)
    seed_everything(arguments.seed)
    network, preprocess = load_requested_network(arguments)
    side = preprocess.input_size
    graph = trace(network.module.to(device), (preprocess.channels, side, side))
    sizes = read_sizes(arguments, graph)
    settings = SearchSettings(
        arguments.quant_type,
        sizes[0],
        candidate_bits=arguments.bits,
        candidate_bits_by_layer=arguments.bits_by_layer,
    )
    problem = Problem.build(graph, settings)
    check_feasible(problem)
    held_out = arguments.num_eval if arguments.eval_split == "train" else 0
    found = calibration_images(
        arguments.dataset,
        arguments.data,
        preprocess,
        arguments.num_images + held_out,
        seed=arguments.seed,
        workers=arguments.workers,
        backend=arguments.loader,
    )
    print_images(arguments, preprocess, found.notes)
    training = found.images
    images = training[: arguments.num_images].to(device)
    checked = check_network(graph, images, arguments.parser.print_note)
    problem = Problem.build(checked, settings)
    parts = images.split(batch_sizes(len(images), arguments.batch_size))
    shards = [Shard(part, len(part)) for part in parts]
    evaluator = SensitivityEvaluator(problem, shards, unbiased=len(parts) > 1, seed=arguments.seed)
    evaluation, labels, unreadable = evaluation_images(
        arguments, preprocess, training, graph.num_outputs
    )
    outcomes = OutcomeEvaluator(evaluator.probed, evaluation.to(device), labels.to(device))
    _judge_float(arguments, network, outcomes.top1, len(labels), graph.num_outputs)
    comparison = compare_candidates(
        evaluator,
        outcomes,
        sizes,
        random_trials=arguments.random,
        rank_trials=arguments.ranked,
        seed=arguments.seed,
    )
    notes = [
        *_notes(network, training, evaluation, arguments),
        *unreadable_note([*found.skipped, *unreadable]),
    ]
    return replace(comparison, notes=tuple(notes))


def _judge_float(
    arguments: argparse.Namespace,
    network: Network,
    top1: float | None,
    count: int,
    num_classes: int,
) -> None:
    """Print the accuracy of the float network, and what is suspicious of it."""
    if top1 is None:
        return
    print(f"float: top-1 {top1:.2f} % of {count} images", flush=True)
    if network.source != RANDOM_WEIGHTS:
        arguments.parser.print_notes(doubt_accuracy(top1, count, num_classes))


def _notes(
    network: Network, training: Tensor, evaluation: Tensor, arguments: argparse.Namespace
) -> Iterator[str]:
    if network.source == RANDOM_WEIGHTS:
        yield arguments.parser.in_flags(RANDOM_WEIGHTS_NOTE)
    yield from network.notes
    priced = {image.numpy().tobytes() for image in training[: arguments.num_images]}
    shared = sum(image.numpy().tobytes() in priced for image in evaluation)
    if shared:
        yield arguments.parser.in_flags(
            f"{shared} of the {len(evaluation)} images that judge are among those that prices come "
            "from; `eval_split` train takes others"
        )


def run(arguments: argparse.Namespace) -> None:
    """Compare, print, write, in a folder that is this run's alone."""
    with lock_folder(arguments.output_dir):
        _run(arguments)


def _run(arguments: argparse.Namespace) -> None:
    folder = arguments.output_dir
    comparison = compare_from(arguments)
    print_comparison(comparison)
    details: dict[str, Any] = {
        "arguments": json_ready(arguments),
        "command": arguments.parser.command,
    }
    write_comparison(comparison, folder / "compare.json", details)
    title = f"{arguments.model}: {arguments.quant_type}, prices of {arguments.num_images} images"
    draw_comparison(comparison, title, folder / "compare.png")
    written = ["compare.json", "compare.png", *add_report(folder, arguments.parser.print_note)]
    print(f"written to {folder}/: {' '.join(written)}")


def main() -> None:
    """Run the console command."""
    run_script(build_parser, run)


if __name__ == "__main__":
    main()
