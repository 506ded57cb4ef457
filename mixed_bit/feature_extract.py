"""Find the bit width of every layer of a trained network from a handful of images."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixed_bit.allocate import ROUNDINGS, SOLVERS
from mixed_bit.features import Shard
from mixed_bit.latency import load_latency
from mixed_bit.methods import best
from mixed_bit.metrics import METRICS, USES_LABELS
from mixed_bit.orthogonality import MINIMUM_UNBIASED_IMAGES
from mixed_bit.pricing import Pricer
from mixed_bit.report import draw, print_result, print_sweep
from mixed_bit.search import (
    SearchResult,
    SearchSettings,
    check_feasible,
    price_and_solve,
    pricer_of,
    to_bit_config,
)
from mixed_bit.sweep import (
    AUTO_POINTS,
    POINTS,
    Point,
    auto_sweep,
    check_order,
    draw_sweep,
    knee,
    sweep,
    write_sweep,
)
from mixed_bit.truth import Truth
from ompq.bitconfig import QUANT_TYPES, BitConfig
from ompq.data import calibration_batches, calibration_images, load_calibration_file
from ompq.data.calibration import batch_sizes
from ompq.errors import OmpqError
from ompq.files import atomic_path, check_writable
from ompq.graph import trace
from ompq.options import (
    Parser,
    add_data_options,
    add_network_options,
    add_run_options,
    int_list,
    network_of,
    pin,
)
from ompq.preprocess import Preprocess
from ompq.runtime import (
    Ranks,
    process_group,
    progress,
    resolve_device,
    run_script,
    seed_everything,
    shard_sizes,
)


def build_parser() -> argparse.ArgumentParser:
    """All options of the script."""
    parser = Parser(prog="feature_extract.py", description=__doc__)
    add_network_options(parser, "--model", "-a", "--arch")
    _add_data_options(parser)
    _add_search_options(parser)
    add_run_options(parser, "ompq_output")
    return parser


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    group = add_data_options(parser, "calibration images", "--save_path", "--data_path", "--data")
    group.add_argument(
        "--calibration_data",
        type=Path,
        metavar="FILE",
        help=".pt or .npy of normalised images n×3×H×W, instead of the data set",
    )
    group.add_argument("--num_images", type=int, default=64, help="how many images")
    group.add_argument(
        "--batch_size",
        type=int,
        default=64,
        help="images per forward pass; with more images than that, the unbiased minibatch "
        "estimate is used",
    )
    group.add_argument(
        "--augment", action="store_true", help="training transforms instead of evaluation ones"
    )


def _add_search_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("search")
    group.add_argument(
        "--quant_type", choices=sorted(QUANT_TYPES), default="QAT", help="what will be done with it"
    )
    group.add_argument("--model_size", type=float, metavar="MB", help="size budget (2^20 bytes)")
    group.add_argument("--bops", type=float, metavar="G", help="budget of bit operations (10^9)")
    group.add_argument(
        "--bits", type=int_list, metavar="B,B,…", help="candidate widths (QAT 4..8, PTQ 2..4)"
    )
    group.add_argument(
        "--pin",
        type=pin,
        action="append",
        default=[],
        metavar="LAYER=BITS",
        help="fix the width of a layer; may be repeated",
    )
    group.add_argument(
        "--act_bits",
        type=int_list,
        default=(8,),
        metavar="A,A,…",
        help="activation bits, for the BOPs (default: 8); several to choose from, with --bops",
    )
    group.add_argument("--latency", type=float, metavar="MS", help="latency budget, by the table")
    group.add_argument(
        "--latency_table",
        type=Path,
        metavar="FILE",
        help="measured times, a JSON file {layer: {bits: milliseconds}}",
    )
    group.add_argument(
        "--metric",
        choices=METRICS,
        default="orm",
        help="what a width costs a group: orthogonality (the paper's), relative error, Fisher "
        "information, output divergence, Hessian trace, or relative error times orthogonality",
    )
    group.add_argument(
        "--auto",
        action="store_true",
        help="try every metric, several beta, projection and random allocations, and take the one "
        "whose output diverges least from the float network's",
    )
    group.add_argument(
        "--sweep",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="the allocations between two sizes in MB, instead of --model_size",
    )
    group.add_argument(
        "--sweep_points",
        type=int,
        metavar="N",
        help=f"budgets of a sweep (default {POINTS}, with --auto {AUTO_POINTS}); 0 for every "
        "reachable one",
    )
    group.add_argument(
        "--labels", action="store_true", help="use the images' labels (default: own predictions)"
    )
    group.add_argument("--beta", type=float, default=10.0, help="beta of theta = exp(-beta gamma)")
    group.add_argument("--solver", choices=SOLVERS, default="ilp", help="how to solve the program")
    group.add_argument(
        "--rounding", choices=ROUNDINGS, default="fill", help="for --solver projection"
    )
    group.add_argument(
        "--uncentred", action="store_true", help="Gram matrices without centring (the formula)"
    )


def _pins(given: list[tuple[str, int]]) -> dict[str, int]:
    pins: dict[str, int] = {}
    for layer, width in given:
        if pins.setdefault(layer, width) != width:
            raise OmpqError(f"--pin {layer} is given twice, as {pins[layer]} and {width} bits")
    return pins


def settings_of(arguments: argparse.Namespace) -> SearchSettings:
    """The search that the command line asks for."""
    if arguments.num_images < 2:
        raise OmpqError(f"--num_images {arguments.num_images}: give 2 or more")
    if arguments.batch_size < 1 or arguments.workers < 0:
        raise OmpqError("--batch_size must be positive and --workers not negative")
    if arguments.labels and not arguments.auto and arguments.metric not in USES_LABELS:
        raise OmpqError(f"--labels goes with --metric {' or '.join(USES_LABELS)}, no other asks")
    if arguments.labels and arguments.calibration_data is not None:
        raise OmpqError("--labels: a file of calibration images has none; give a data set")
    if arguments.sweep and arguments.model_size is not None:
        raise OmpqError("--sweep LOW HIGH takes the place of --model_size; give one of them")
    if arguments.sweep:
        check_order(*arguments.sweep)
    if arguments.auto and arguments.sweep_points is not None and arguments.sweep_points < 2:
        raise OmpqError("--sweep_points with --auto is 2 or more: it tries out every budget")
    if arguments.sweep_points is not None and (not arguments.sweep or arguments.sweep_points < 0):
        raise OmpqError("--sweep_points N goes with --sweep and is not negative")
    if (arguments.auto or arguments.sweep) and arguments.solver != "ilp":
        raise OmpqError(f"--solver {arguments.solver} goes with neither --auto nor --sweep")
    return SearchSettings(
        quant_type=arguments.quant_type,
        size_mb=arguments.sweep[1] if arguments.sweep else arguments.model_size,
        bops_g=arguments.bops,
        candidates=arguments.bits,
        pins=_pins(arguments.pin),
        act_bits=max(arguments.act_bits, default=0),
        act_candidates=arguments.act_bits if len(set(arguments.act_bits)) > 1 else (),
        latency_ms=arguments.latency,
        latency=load_latency(arguments.latency_table) if arguments.latency_table else None,
        metric=arguments.metric,
        beta=arguments.beta,
        solver=arguments.solver,
        rounding=arguments.rounding,
        centred=not arguments.uncentred,
    )


@dataclass
class _Images:
    """Batches of images, their labels if asked for, how many there are at most, height, width."""

    batches: Iterator[Tensor]
    labels: Tensor | None
    count: int
    size: tuple[int, int]


def _images(arguments: argparse.Namespace, preprocess: Preprocess, skipped: list[str]) -> _Images:
    size = arguments.batch_size
    if arguments.calibration_data is not None:
        images = load_calibration_file(arguments.calibration_data)
        batches = iter(images.split(batch_sizes(len(images), size)))
        return _Images(batches, None, len(images), (images.shape[-2], images.shape[-1]))
    side = preprocess.input_size, preprocess.input_size
    source = arguments.dataset, arguments.data, preprocess, arguments.num_images
    how = {
        "seed": arguments.seed,
        "workers": arguments.workers,
        "backend": arguments.loader,
        "augment": arguments.augment,
    }
    if not arguments.labels:
        batches = calibration_batches(*source, size, skipped=skipped, **how)
        return _Images(batches, None, arguments.num_images, side)
    found = calibration_images(*source, **how)
    skipped += found.skipped
    if (found.labels < 0).any():
        raise OmpqError(f"--labels: {arguments.data or arguments.dataset} has none; leave it out")
    batches = iter(found.images.split(batch_sizes(len(found.labels), size)))
    return _Images(batches, found.labels, len(found.labels), side)


def _shards(batches: Iterator[Tensor], ranks: Ranks, device: torch.device) -> Iterator[Shard]:
    """This rank's contiguous part of every batch, on its device."""
    for batch in batches:
        if batch.shape[0] < ranks.world_size:
            raise OmpqError(f"{ranks.world_size} ranks cannot share {batch.shape[0]} image(s)")
        parts = batch.split(shard_sizes(batch.shape[0], ranks.world_size))
        yield Shard(parts[ranks.rank].to(device), batch.shape[0])


@dataclass
class Found:
    """What the script found: one allocation, or a sweep whose knee it is."""

    result: SearchResult
    config: BitConfig
    points: list[Point]


def extract(arguments: argparse.Namespace) -> Found:
    """Everything the script does but printing and writing.

    Args:
        arguments: of `build_parser`.
    """
    settings = settings_of(arguments)
    ranks = Ranks.from_environment()
    device = resolve_device(arguments.device, ranks.local_rank)
    seed_everything(arguments.seed)
    network, preprocess = network_of(arguments)
    skipped: list[str] = []
    found = _images(arguments, preprocess, skipped)
    graph = trace(network.module.to(device), (3, *found.size))
    check_feasible(graph.groups, settings)
    unbiased = found.count > arguments.batch_size
    total = -(-found.count // arguments.batch_size)
    smallest = min(batch_sizes(found.count, arguments.batch_size))
    if unbiased and smallest < MINIMUM_UNBIASED_IMAGES:
        raise OmpqError(
            f"--batch_size {arguments.batch_size}: the minibatch estimate needs "
            f"{MINIMUM_UNBIASED_IMAGES} images in a batch"
        )
    details: dict[str, Any] = {
        "weights": network.source,
        "dataset": str(arguments.calibration_data or arguments.dataset),
        "input_size": list(found.size),
        "skipped_images": skipped,
        "labels": arguments.labels,
        "augment": arguments.augment,
        "float_layers": dict(graph.float_layers),
        "device": device.type,
    }
    with process_group(ranks, device):
        shards: Iterable[Shard] = progress(
            _shards(found.batches, ranks, device), "features", total, ranks
        )
        pricer = pricer_of(
            graph,
            list(shards) if arguments.auto or arguments.sweep else shards,
            settings,
            unbiased=unbiased,
            ranks=ranks,
            labels=None if found.labels is None else found.labels.to(device),
            seed=arguments.seed,
        )
        points: list[Point] = []
        if arguments.sweep:
            points = _sweep(arguments, pricer, settings)
            result = knee(points).result
        elif arguments.auto:
            truth = Truth(pricer.subject, pricer.subject.images)
            result, tried = best(pricer, truth, settings, seed=arguments.seed)
            details["auto"] = [
                {"method": str(trial.method), "kl": trial.outcome.kl} for trial in tried
            ]
        else:
            result = price_and_solve(pricer, settings)
    config = to_bit_config(result, arguments.model, seed=arguments.seed, details=details)
    return Found(result, config, points)


def _sweep(arguments: argparse.Namespace, pricer: Pricer, settings: SearchSettings) -> list[Point]:
    low, high = arguments.sweep
    if not arguments.auto:
        count = POINTS if arguments.sweep_points is None else arguments.sweep_points
        return list(progress(sweep(pricer, settings, low, high, count), "budgets", count or None))
    count = AUTO_POINTS if arguments.sweep_points is None else arguments.sweep_points
    truth = Truth(pricer.subject, pricer.subject.images)
    tried = auto_sweep(pricer, truth, settings, low, high, count, arguments.seed)
    return list(progress(tried, "budgets", count))


def write(found: Found, folder: Path) -> list[str]:
    """Write `bit_config.json` and `bit_config.png`; `orthogonality.npy` (float64, L × L) where it
    was measured; `sweep.json` and `sweep.png` of a sweep. Returns the names of what was written.
    """
    result, config = found.result, found.config
    config.save(folder / "bit_config.json")
    draw(result, config.model, folder / "bit_config.png")
    names = ["bit_config.json", "bit_config.png"]
    if result.orthogonality is not None:
        with atomic_path(folder / "orthogonality.npy") as temporary:
            np.save(temporary, result.orthogonality.matrix)
        names.append("orthogonality.npy")
    if found.points:
        kept = ("seed", "num_images", "weights", "dataset", "candidates", "versions")
        details = {"model": config.model, **{key: config.details[key] for key in kept}}
        write_sweep(found.points, folder / "sweep.json", details)
        draw_sweep(found.points, config.model, folder / "sweep.png")
        names += ["sweep.json", "sweep.png"]
    return names


def run() -> None:
    """Parse, search, print, write."""
    arguments = build_parser().parse_args()
    check_writable(arguments.output_dir)
    found = extract(arguments)
    if Ranks.from_environment().is_main:
        if arguments.auto and arguments.metric != "orm":
            print(f"note: --auto tries every metric, not {arguments.metric} alone")
        if found.points:
            print_sweep(found.points)
        print_result(found.result, found.config)
        sys.stdout.flush()
        written = write(found, arguments.output_dir)
        print(f"written to {arguments.output_dir}/: {' '.join(written)}")


def main() -> None:
    """Entry point of the console command."""
    run_script(run)


if __name__ == "__main__":
    main()
