"""Find the bit width of every layer of a trained network from a handful of images."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from ompq.script import interruptible_imports, run_script

with interruptible_imports():
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from dataclasses import dataclass, replace
    from itertools import chain
    from typing import Any

    import numpy as np
    import torch
    from torch import Tensor

    from mixed_bit.bit_search import (
        Half,
        SearchResult,
        build_bit_config,
        judge_by,
        measure_and_solve,
        split_images,
    )
    from mixed_bit.comparison.candidates import choose_best
    from mixed_bit.comparison.outcome import OutcomeEvaluator
    from mixed_bit.comparison.pareto import (
        FrontPoint,
        draw_front,
        find_knee,
        measure_front,
        space_evenly,
        trace_front,
        write_front,
    )
    from mixed_bit.feasibility import check_feasible
    from mixed_bit.options import build_search_parser as build_parser
    from mixed_bit.options import read_settings
    from mixed_bit.problem import Problem
    from mixed_bit.report import draw_result, print_front, print_result
    from mixed_bit.sensitivity import METRICS
    from mixed_bit.sensitivity.evaluator import SensitivityEvaluator
    from mixed_bit.sensitivity.features import Shard
    from mixed_bit.sensitivity.orthogonality import MINIMUM_UNBIASED_IMAGES
    from mixed_bit.settings import FRONT_POINTS, MEASURED_FRONT_POINTS, SearchSettings
    from ompq.assignment import BitConfig
    from ompq.data import calibration_batches, calibration_images, load_calibration_file
    from ompq.data.batching import batch_sizes
    from ompq.errors import OmpqError
    from ompq.files import atomic_path, lock_folder
    from ompq.graph import check_network, trace
    from ompq.options import check_classes, load_requested_network, print_images
    from ompq.preprocess import Preprocess
    from ompq.report import add_report
    from ompq.runtime import (
        Ranks,
        process_group,
        progress,
        resolve_device,
        seed_everything,
        shard_sizes,
    )


@dataclass
class _Images:
    """Calibration images of the command line.

    Attributes:
        batches: Batches of images.
        labels: Their labels, if asked for.
        count: How many images there are at most.
        shape: Channels, height and width.
        skipped: Unreadable files; complete when the batches are read.
        notes: What a user should know of them.
        held: Images held out, which judge a distance; None where none is asked for.
    """

    batches: Iterator[Tensor]
    labels: Tensor | None
    count: int
    shape: tuple[int, int, int]
    skipped: list[str]
    notes: Sequence[str] = ()
    held: Half | None = None

    def hold_out_half(self) -> _Images:
        """Hold out every other image, to judge by."""
        measured, held = split_images(list(self.batches), self.labels)
        count = sum(map(len, measured.images))
        return replace(
            self, batches=iter(measured.images), labels=measured.labels, count=count, held=held
        )


def _read_images(
    arguments: argparse.Namespace,
    preprocess: Preprocess,
    num_classes: int,
    settings: SearchSettings,
) -> _Images:
    """Read the images; the half of them that judges a distance is held out."""
    if settings.has_distance and Ranks.from_environment().world_size > 1:
        raise OmpqError("`kl_nats` and `drop_points` judge in one process; start a single one")
    if not settings.has_distance:
        return _open_images(arguments, preprocess, num_classes, arguments.labels)
    images = _open_images(arguments, preprocess, num_classes, True).hold_out_half()
    if not arguments.labels:
        images.labels = None
    return images


def _open_images(
    arguments: argparse.Namespace, preprocess: Preprocess, num_classes: int, labelled: bool
) -> _Images:
    """Open the images; with the labels that there are if they are asked for."""
    size, channels = arguments.batch_size, preprocess.channels
    if arguments.calibration_data is not None:
        images = load_calibration_file(arguments.calibration_data, channels)
        batches = iter(images.split(batch_sizes(len(images), size)))
        height, width = images.shape[-2:]
        return _Images(batches, None, len(images), (channels, height, width), [])
    shape = (channels, preprocess.input_size, preprocess.input_size)
    source = arguments.dataset, arguments.data, preprocess, arguments.num_images
    how = {
        "seed": arguments.seed,
        "workers": arguments.workers,
        "backend": arguments.loader,
        "augment": arguments.augment,
    }
    if not labelled:
        read = calibration_batches(*source, size, **how)
        return _Images(iter(read), None, arguments.num_images, shape, read.skipped, read.notes)
    found = calibration_images(*source, num_classes=num_classes, **how)
    unlabelled = bool((found.labels < 0).any())
    if unlabelled and arguments.labels:
        raise OmpqError(f"`labels`: {arguments.data or arguments.dataset} has none; leave it out")
    if not unlabelled:
        check_classes(int(found.labels.max()) + 1, num_classes)
    batches = iter(found.images.split(batch_sizes(len(found.labels), size)))
    count = len(found.labels)
    return _Images(batches, found.labels, count, shape, found.skipped, found.notes)


def _print_images(
    arguments: argparse.Namespace, preprocess: Preprocess, images: _Images, ranks: Ranks
) -> None:
    if arguments.calibration_data is None:
        print_images(arguments, preprocess, images.notes)
    elif ranks.is_main:
        shape = "×".join(map(str, images.shape))
        print(f"images: {images.count} of {arguments.calibration_data}, {shape}, as they are")


def _shard(batches: Iterator[Tensor], ranks: Ranks, device: torch.device) -> Iterator[Shard]:
    """Yield this rank's contiguous part of every batch, on its device."""
    for batch in batches:
        if batch.shape[0] < ranks.world_size:
            raise OmpqError(
                f"{ranks.world_size} ranks cannot share {batch.shape[0]} image(s); raise "
                "`batch_size` or `num_images`, or start fewer processes"
            )
        parts = batch.split(shard_sizes(batch.shape[0], ranks.world_size))
        yield Shard(parts[ranks.rank].to(device), batch.shape[0])


@dataclass
class Found:
    """What the script found: one allocation, or a front whose knee it is."""

    result: SearchResult
    config: BitConfig
    points: list[FrontPoint]


def extract(arguments: argparse.Namespace) -> Found:
    """Do everything that the script does but printing the result and writing it.

    Args:
        arguments: Command line of `build_parser`.
    """
    settings = read_settings(arguments)
    ranks = Ranks.from_environment()
    device = resolve_device(arguments.device, ranks.local_rank)
    seed_everything(arguments.seed)
    network, preprocess = load_requested_network(arguments)
    asked = arguments, preprocess, network.num_classes, settings
    # A file tells the size of its images; a data set is read once the budgets are known to be kept.
    images = None if arguments.calibration_data is None else _read_images(*asked)
    side = preprocess.input_size
    shape = (preprocess.channels, side, side) if images is None else images.shape
    problem = Problem.build(trace(network.module.to(device), shape), settings)
    check_feasible(problem)
    images = _read_images(*asked) if images is None else images
    if arguments.auto or METRICS[settings.chosen_metric].uses_orthogonality:
        _check_batches(images.count, arguments.batch_size)
    _print_images(arguments, preprocess, images, ranks)
    if ranks.is_main:
        arguments.parser.print_notes([*network.notes, *_note_unused(arguments)])
    problem = _check(problem, images, arguments.parser.print_note if ranks.is_main else None)
    details: dict[str, Any] = {
        "command": arguments.parser.command,
        "weights": network.source,
        "dataset": str(arguments.calibration_data or arguments.dataset),
        "input_size": list(images.shape[1:]),
        "skipped_images": images.skipped,
        "labels": arguments.labels,
        "augment": arguments.augment,
        "parameters": problem.graph.parameters.to_json(),
        "float_layers": dict(problem.graph.float_layers),
        "device": device.type,
    }
    with process_group(ranks, device):
        total = -(-images.count // arguments.batch_size)
        shards: Iterable[Shard] = progress(
            _shard(images.batches, ranks, device), "features", total, ranks
        )
        evaluator = SensitivityEvaluator(
            problem,
            list(shards) if arguments.auto or arguments.sweep else shards,
            labels=None if images.labels is None else images.labels.to(device),
            unbiased=images.count > arguments.batch_size,
            ranks=ranks,
            seed=arguments.seed,
        )
        points: list[FrontPoint] = []
        if arguments.sweep:
            points = _find_front(arguments, evaluator, problem)
            result = find_knee(points).result
        elif arguments.auto:
            outcomes = OutcomeEvaluator(evaluator.probed, evaluator.probed.images)
            result, tried = choose_best(evaluator, outcomes, problem, seed=arguments.seed)
            details["auto"] = [
                {"method": str(trial.candidate), "kl": trial.outcome.kl} for trial in tried
            ]
        else:
            judge = None if images.held is None else judge_by(evaluator, images.held)
            result = measure_and_solve(evaluator, problem, judge)
    config = build_bit_config(result, arguments.model, seed=arguments.seed, details=details)
    return Found(result, config, points)


def _check(problem: Problem, images: _Images, say: Callable[[str], None] | None) -> Problem:
    """Check the traced network on the first images, which stay in `images`."""
    first = next(images.batches, None)
    if first is None:
        raise OmpqError("there are no calibration images; check `root` and `num_images`")
    images.batches = chain([first], images.batches)
    graph = check_network(problem.graph, first, say or (lambda note: None))
    checked = Problem.build(graph, problem.settings)
    check_feasible(checked)
    return checked


def _note_unused(arguments: argparse.Namespace) -> list[str]:
    """Note options that choose images, where a file holds those to take."""
    if arguments.calibration_data is None:
        return []
    names = ("num_images", "augment")
    given = [n for n in names if getattr(arguments, n) != arguments.parser.get_default(n)]
    named = " and ".join(f"`{name}`" for name in given)
    return [f"{named} without effect: `calibration_data` holds the images"] if given else []


def _check_batches(count: int, batch_size: int) -> None:
    if count > batch_size and min(batch_sizes(count, batch_size)) < MINIMUM_UNBIASED_IMAGES:
        raise OmpqError(
            f"`batch_size` {batch_size}: the minibatch estimate needs {MINIMUM_UNBIASED_IMAGES} "
            "images in a batch; raise it, or take another `num_images`"
        )


def _find_front(
    arguments: argparse.Namespace, evaluator: SensitivityEvaluator, problem: Problem
) -> list[FrontPoint]:
    low, high = arguments.sweep
    points = arguments.sweep_points
    if not arguments.auto:
        count = FRONT_POINTS if points is None else points
        found = trace_front(evaluator, problem, low, high, count)
        return list(progress(found, "budgets", count or None))
    sizes = space_evenly(low, high, MEASURED_FRONT_POINTS if points is None else points)
    outcomes = OutcomeEvaluator(evaluator.probed, evaluator.probed.images)
    found = measure_front(evaluator, outcomes, problem, sizes, seed=arguments.seed)
    return list(progress(found, "budgets", len(sizes)))


def write(found: Found, folder: Path) -> list[str]:
    """Write what was found, and return the names of the files.

    `bit_config.json` and `bit_config.png`; `orthogonality.npy` (float64, L × L) where it was
    measured; `sweep.json` and `sweep.png` of a front.
    """
    result, config = found.result, found.config
    config.save(folder / "bit_config.json")
    draw_result(result, config.model, folder / "bit_config.png")
    names = ["bit_config.json", "bit_config.png"]
    if result.orthogonality is not None:
        with atomic_path(folder / "orthogonality.npy") as temporary:
            np.save(temporary, result.orthogonality.matrix)
        names.append("orthogonality.npy")
    if found.points:
        kept = ("seed", "num_images", "weights", "dataset", "candidates", "versions")
        details = {"model": config.model, **{key: config.details[key] for key in kept}}
        write_front(found.points, folder / "sweep.json", details)
        draw_front(found.points, config.model, folder / "sweep.png")
        names += ["sweep.json", "sweep.png"]
    return names


def run(arguments: argparse.Namespace) -> None:
    """Search, print, write, in a folder that is this run's alone."""
    with lock_folder(arguments.output_dir):
        _run(arguments)


def _run(arguments: argparse.Namespace) -> None:
    found = extract(arguments)
    if not Ranks.from_environment().is_main:
        return
    if arguments.auto and arguments.metric is not None:
        note = f"`auto` tries every metric, not {arguments.metric} alone"
        arguments.parser.print_notes([note])
    if found.points:
        print_front(found.points)
    print_result(found.result, found.config, arguments.parser.in_flags)
    sys.stdout.flush()
    written = write(found, arguments.output_dir)
    written += add_report(arguments.output_dir, arguments.parser.print_note)
    print(f"written to {arguments.output_dir}/: {' '.join(written)}")


def main() -> None:
    """Run the console command."""
    run_script(build_parser, run)


if __name__ == "__main__":
    main()
