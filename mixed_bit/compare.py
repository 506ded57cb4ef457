"""Compare every way to allocate bits at equal size, by what really happens to the output."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mixed_bit.budgets import listed_groups
from mixed_bit.comparison import (
    Comparison,
    compare,
    draw_comparison,
    print_comparison,
    write_comparison,
)
from mixed_bit.features import Shard
from mixed_bit.search import check_feasible, pricer_of
from mixed_bit.settings import SearchSettings
from mixed_bit.truth import Truth
from ompq.bitconfig import PINNED_BITS, QUANT_TYPES
from ompq.cost import BITS_PER_MB
from ompq.data import calibration_images, make_loader, unreadable_note
from ompq.data.calibration import batch_sizes
from ompq.errors import OmpqError
from ompq.files import check_writable
from ompq.graph import NetworkGraph, trace
from ompq.options import (
    Parser,
    add_data_options,
    add_network_options,
    add_run_options,
    float_list,
    int_list,
    json_ready,
    network_of,
)
from ompq.preprocess import Preprocess
from ompq.runtime import resolve_device, run_script, seed_everything
from ompq.zoo import RANDOM_WEIGHTS, Network


def build_parser() -> argparse.ArgumentParser:
    """All options of the script."""
    parser = Parser(prog="compare.py", description=__doc__)
    add_network_options(parser, "--model", "-a", "--arch")
    group = add_data_options(parser, "images", "--save_path", "--data_path", "--data")
    group.add_argument("--num_images", type=int, default=64, help="images that prices come from")
    group.add_argument(
        "--num_eval", type=int, default=256, help="images that outcomes are measured on"
    )
    group.add_argument(
        "--eval_split",
        choices=("val", "train"),
        default="val",
        help="where these come from; of train, only images that no price comes from",
    )
    group.add_argument("--batch_size", type=int, default=64, help="images per forward pass")
    group = parser.add_argument_group("comparison")
    budgets = group.add_mutually_exclusive_group(required=True)
    budgets.add_argument("--sizes", type=float_list, metavar="MB,MB,…", help="size budgets")
    budgets.add_argument(
        "--mean_bits",
        type=float_list,
        metavar="B,B,…",
        help="size budgets as mean bits of the listed parameters",
    )
    group.add_argument(
        "--quant_type", choices=sorted(QUANT_TYPES), default="QAT", help="what the list covers"
    )
    group.add_argument(
        "--bits", type=int_list, metavar="B,B,…", help="candidate widths (QAT 4..8, PTQ 2..4)"
    )
    group.add_argument("--random", type=int, default=20, help="random allocations at every size")
    group.add_argument(
        "--ranked", type=int, default=60, help="random allocations of any size to be ranked"
    )
    add_run_options(parser, "compare_output")
    return parser


def sizes_of(arguments: argparse.Namespace, graph: NetworkGraph) -> list[float]:
    """The budgets in MB, ascending."""
    if arguments.sizes:
        return sorted(set(arguments.sizes))
    listed = {group.name for group in listed_groups(graph.groups, arguments.quant_type)}
    params = sum(group.params for group in graph.groups if group.name in listed)
    fixed = sum(group.params for group in graph.groups if group.name not in listed) * PINNED_BITS
    return [(params * mean + fixed) / BITS_PER_MB for mean in sorted(set(arguments.mean_bits))]


def evaluation_images(
    arguments: argparse.Namespace, preprocess: Preprocess, training: Tensor, skipped: list[str]
) -> tuple[Tensor, Tensor]:
    """Images and labels (−1 without) that outcomes are measured on.

    `training` are training images, of which the first `--num_images` are for the prices; accuracy
    on the others would say nothing, for the network has learned them. Unreadable files are added to
    `skipped`.
    """
    if arguments.eval_split == "train":
        rest = training[arguments.num_images :]
        if not len(rest):
            raise OmpqError(
                f"--eval_split train: all {len(training)} images went into the prices; "
                "lower --num_images"
            )
        return rest, torch.full((len(rest),), -1)
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
    )
    images, found = map(torch.cat, zip(*loader, strict=True))
    skipped += loader.skipped
    return images, found


def comparison_of(arguments: argparse.Namespace) -> Comparison:
    """Everything the script does but printing and writing.

    Args:
        arguments: of `build_parser`.
    """
    for name in ("num_images", "num_eval", "batch_size", "ranked"):
        if getattr(arguments, name) < 2:
            raise OmpqError(f"--{name} {getattr(arguments, name)}: give 2 or more")
    if arguments.random < 0:
        raise OmpqError("--random cannot be negative")
    device = resolve_device(arguments.device)
    seed_everything(arguments.seed)
    network, preprocess = network_of(arguments)
    side = preprocess.input_size
    graph = trace(network.module.to(device), (3, side, side))
    sizes = sizes_of(arguments, graph)
    settings = SearchSettings(arguments.quant_type, sizes[0], candidates=arguments.bits)
    check_feasible(graph.groups, settings)
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
    training = found.images
    images = training[: arguments.num_images].to(device)
    parts = images.split(batch_sizes(len(images), arguments.batch_size))
    shards = [Shard(part, len(part)) for part in parts]
    pricer = pricer_of(graph, shards, settings, unbiased=len(parts) > 1, seed=arguments.seed)
    skipped = list(found.skipped)
    evaluation, labels = evaluation_images(arguments, preprocess, training, skipped)
    truth = Truth(pricer.subject, evaluation.to(device), labels.to(device))
    comparison = compare(
        pricer,
        truth,
        settings,
        sizes,
        random_trials=arguments.random,
        rank_trials=arguments.ranked,
        seed=arguments.seed,
    )
    notes = [*_notes(network, training, evaluation, arguments), *unreadable_note(skipped)]
    return replace(comparison, notes=tuple(notes))


def _notes(
    network: Network, training: Tensor, evaluation: Tensor, arguments: argparse.Namespace
) -> Iterator[str]:
    if network.source == RANDOM_WEIGHTS:
        yield "the network has random weights; give a checkpoint with --path"
    priced = {image.numpy().tobytes() for image in training[: arguments.num_images]}
    shared = sum(image.numpy().tobytes() in priced for image in evaluation)
    if shared:
        yield (
            f"{shared} of the {len(evaluation)} images that judge are among those that prices come "
            "from; --eval_split train takes others"
        )


def run() -> None:
    """Parse, compare, write, print."""
    arguments = build_parser().parse_args()
    folder = arguments.output_dir
    check_writable(folder)
    comparison = comparison_of(arguments)
    print_comparison(comparison)
    details: dict[str, Any] = {"arguments": json_ready(arguments)}
    write_comparison(comparison, folder / "compare.json", details)
    title = f"{arguments.model}: {arguments.quant_type}, prices of {arguments.num_images} images"
    draw_comparison(comparison, title, folder / "compare.png")
    print(f"written to {folder}/: compare.json compare.png")


def main() -> None:
    """Entry point of the console command."""
    run_script(run)


if __name__ == "__main__":
    main()
