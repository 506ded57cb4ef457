"""Quantize a trained network after training, block by block, from about a thousand images."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import time
from typing import Any

import torch

from ompq import artifact
from ompq.bitconfig import Assignment, assign, resolve, uniform
from ompq.data import calibration_images, load_calibration_file, unreadable_note
from ompq.errors import OmpqError
from ompq.files import check_writable, set_aside, write_json
from ompq.graph import NetworkGraph, trace
from ompq.metrics import predict
from ompq.options import (
    Parser,
    add_configuration_choice,
    add_data_options,
    add_network_options,
    add_run_options,
    check_classes,
    json_ready,
    labelled_images_of,
    network_of,
)
from ompq.preprocess import Preprocess
from ompq.runtime import Ranks, resolve_device, run_script, seed_everything
from ompq.zoo import RANDOM_WEIGHTS, Network
from PTQ.pipeline import (
    Outcome,
    Row,
    Task,
    control_assignment,
    control_row,
    float_row,
    forget,
    post_training_quantization,
    rounded_row,
)
from PTQ.report import print_table, to_json
from PTQ.settings import CACHE_DEVICES, LOSSES, Settings

DEFAULT_ACT_BITS = 4

RESULTS = (artifact.FILE, "results.json")


def build_parser() -> argparse.ArgumentParser:
    """All options of the script."""
    parser = Parser(prog="main_imagenet.py", description=__doc__)
    add_network_options(parser, "--arch", "-a", "--model", required=False)
    _add_data_options(parser)
    _add_configuration_options(parser)
    _add_reconstruction_options(parser)
    add_run_options(parser, "ptq_output", seed=1005, workers=4)
    group = parser.add_argument_group("what to do")
    group.add_argument(
        "--evaluate", type=Path, metavar="DIR", help="evaluate the quantized network of that folder"
    )
    group.add_argument("--resume", action="store_true", help="go on with a killed run")
    group.add_argument(
        "--test_before_calibration",
        action="store_true",
        help="print the accuracy of plain rounding before reconstruction (else only at the end)",
    )
    group.add_argument(
        "--control",
        action="store_true",
        help="also quantize with uniform bits of at least the same size (twice the time)",
    )
    return parser


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    group = add_data_options(parser, "images", "--data_path", "--data", "--save_path")
    group.add_argument("--num_samples", type=int, default=1024, help="calibration images")
    group.add_argument(
        "--calibration_data",
        type=Path,
        metavar="FILE",
        help=".pt or .npy of normalised images n×3×H×W to calibrate with, all of them",
    )
    group.add_argument("--batch_size", type=int, default=64, help="images per evaluation batch")
    group.add_argument(
        "--augment", action="store_true", help="training transforms for the calibration images"
    )


def _add_configuration_options(parser: argparse.ArgumentParser) -> None:
    group = add_configuration_choice(
        parser, "configuration", list_help='a list such as "[4, 3, 8]" or a bit_config.json'
    )
    group.add_argument(
        "--n_bits_w", type=int, default=4, help="weight bits where no configuration is given"
    )
    group.add_argument(
        "--n_bits_a",
        type=int,
        help=f"activation bits (default: the configuration's own, else {DEFAULT_ACT_BITS})",
    )
    group.add_argument("--act_quant", action="store_true", help="quantize activations too")
    group.add_argument(
        "--channel_wise", action="store_true", help="a weight scale per channel, not per layer"
    )
    group.add_argument("--sym", action="store_true", help="symmetric weight grids")
    group.add_argument(
        "--disable_8bit_head_stem",
        action="store_true",
        help="give the stem and the classifier --n_bits_w bits too (a list names them itself)",
    )


def _add_reconstruction_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("reconstruction")
    group.add_argument("--iters_w", type=int, default=20000, help="steps per block for weights")
    group.add_argument(
        "--weight", type=float, default=0.01, help="weight of the rounding regulariser"
    )
    group.add_argument("--b_start", type=float, default=20.0, help="its exponent at the start")
    group.add_argument("--b_end", type=float, default=2.0, help="its exponent at the end")
    group.add_argument("--warmup", type=float, default=0.2, help="share of steps without it")
    group.add_argument("--iters_a", type=int, default=5000, help="steps per block for activations")
    group.add_argument("--lr", type=float, default=4e-4, help="learning rate of activation scales")
    group.add_argument("--p", type=float, default=2.4, help="p of the activations' L_p loss")
    group.add_argument("--loss", choices=LOSSES, default="mse", help="loss of a block")
    group.add_argument(
        "--drop_prob", type=float, help="QDrop: share of activations left in float while learning"
    )
    group.add_argument(
        "--granularity", choices=("block", "layer"), default="block", help="learned at a time"
    )
    group.add_argument(
        "--cache_device", choices=CACHE_DEVICES, default="auto", help="home of the activations"
    )


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The reconstruction that the command line asks for."""
    return Settings(
        per_channel=arguments.channel_wise,
        symmetric=arguments.sym,
        act_quant=arguments.act_quant,
        weight_iterations=arguments.iters_w,
        act_iterations=arguments.iters_a,
        rounding_weight=arguments.weight,
        b_start=arguments.b_start,
        b_end=arguments.b_end,
        warmup=arguments.warmup,
        act_lr=arguments.lr,
        act_power=arguments.p,
        loss=arguments.loss,
        drop_probability=arguments.drop_prob,
        granularity=arguments.granularity,
        cache_device=arguments.cache_device,
        seed=arguments.seed,
    )


def assignment_of(arguments: argparse.Namespace, graph: NetworkGraph) -> Assignment:
    """The widths that the command line asks for."""
    given = arguments.quant_scheme if arguments.bit_cfg is None else arguments.bit_cfg
    act_bits = arguments.n_bits_a
    if given is not None and arguments.disable_8bit_head_stem:
        raise OmpqError(
            "--disable_8bit_head_stem goes with --n_bits_w; a configuration says itself which bits "
            "the stem and the classifier get"
        )
    if given is not None:
        is_list = given.strip().startswith(("[", "("))
        return resolve(
            given,
            graph.groups,
            "PTQ",
            act_bits=DEFAULT_ACT_BITS if is_list and act_bits is None else act_bits,
        )
    act_bits = DEFAULT_ACT_BITS if act_bits is None else act_bits
    if arguments.disable_8bit_head_stem:
        widths = [arguments.n_bits_w] * len(graph.groups)
        return assign(graph.groups, "PTQ", widths, act_bits)
    return uniform(graph.groups, arguments.n_bits_w, act_bits)


def _calibration(
    arguments: argparse.Namespace, preprocess: Preprocess
) -> tuple[torch.Tensor, list[str]]:
    """Calibration images, and the unreadable files that were skipped."""
    if arguments.calibration_data is not None:
        return load_calibration_file(arguments.calibration_data), []
    found = calibration_images(
        arguments.dataset,
        arguments.data,
        preprocess,
        arguments.num_samples,
        seed=arguments.seed,
        backend=arguments.loader,
        workers=arguments.workers,
        augment=arguments.augment,
    )
    return found.images, found.skipped


def _as_large_as(images: torch.Tensor, preprocess: Preprocess) -> Preprocess:
    """What gives test images the size of the calibration images."""
    height, width = images.shape[-2:]
    if height != width:
        raise OmpqError(
            f"--calibration_data holds images of {height}×{width}; the test images are square, "
            "and the network is quantized for one size"
        )
    return preprocess if height == preprocess.input_size else preprocess.at(height)


def quantize(arguments: argparse.Namespace) -> dict[str, Any]:
    """Quantize, print the table, write `quantized.safetensors` and `results.json`.

    Args:
        arguments: of `build_parser`.

    Returns:
        the content of `results.json`.
    """
    start = time.perf_counter()
    settings = settings_of(arguments)
    check_writable(arguments.output_dir)
    device = resolve_device(arguments.device)
    network, preprocess = network_of(arguments)
    images, skipped = _calibration(arguments, preprocess)
    preprocess = _as_large_as(images, preprocess)
    test = labelled_images_of(arguments, preprocess, arguments.batch_size)
    side = preprocess.input_size
    graph = trace(network.module.to(device), (preprocess.channels, side, side))
    _print_notes(check_classes(test.num_classes, graph.num_outputs))
    assignment = assignment_of(arguments, graph)
    task = Task(graph, images, test, settings, arguments.output_dir, arguments.resume)
    _print_task(network, graph, assignment, settings, len(images), skipped)
    first = float_row(task, assignment)
    _print_row("float", first)
    nearest = None
    if arguments.test_before_calibration:
        nearest = rounded_row(task, assignment)
        _print_row("rounded to nearest, before reconstruction", nearest)
    outcome = post_training_quantization(task, assignment, first, nearest)
    control = _control(arguments, task, assignment)
    skipped += test.skipped
    content = _write(arguments, outcome, control, network, preprocess, assignment, skipped, start)
    _print_notes(unreadable_note(test.skipped))
    print_table([*outcome.rows, *([control] if control else [])])
    print(f"written to {arguments.output_dir}/: {' '.join(RESULTS)}")
    return content


def _control(arguments: argparse.Namespace, task: Task, assignment: Assignment) -> Row | None:
    if not arguments.control:
        return None
    chosen = control_assignment(assignment)
    if chosen is None:
        print("note: there is no other uniform configuration as large, and so no control")
        return None
    return control_row(task, chosen)


def _write(
    arguments: argparse.Namespace,
    outcome: Outcome,
    control: Row | None,
    network: Network,
    preprocess: Preprocess,
    assignment: Assignment,
    skipped: list[str],
    start: float,
) -> dict[str, Any]:
    content = to_json(outcome, control, json_ready(arguments), time.perf_counter() - start)
    content["bits"] = list(assignment.widths)
    content["skipped_images"] = skipped
    content["groups"] = [list(group.layers) for group in assignment.groups]
    folder = arguments.output_dir
    earlier = set_aside(folder, RESULTS)
    if earlier is not None:
        _print_notes([f"the result that was in {folder}/ is now in {earlier}/"])
    artifact.save(folder / artifact.FILE, outcome.network, network, preprocess, assignment)
    write_json(folder / "results.json", content)
    forget(folder)
    return content


def _print_task(
    network: Network,
    graph: NetworkGraph,
    assignment: Assignment,
    settings: Settings,
    count: int,
    skipped: list[str],
) -> None:
    if network.source == RANDOM_WEIGHTS:
        print("note: the network has random weights; give a checkpoint with --path")
    _print_notes(unreadable_note(skipped))
    for name, reason in graph.float_layers.items():
        print(f"note: {name} stays in float: {reason}")
    if not settings.per_channel:
        print("note: one weight scale per layer; --channel_wise gives every channel its own")
    activations = f"A {assignment.act_bits}" if settings.act_quant else "activations in float"
    print(
        f"{network.name}: {assignment.float_size_mb:.4f} → {assignment.size_mb:.4f} MB, "
        f"{activations}, {count} calibration images"
    )
    print(f"weight bits: {list(assignment.widths)}", flush=True)


def _print_notes(notes: list[str]) -> None:
    for note in notes:
        print(f"note: {note}", flush=True)


def _print_row(name: str, row: Row) -> None:
    if row.predictions.has_labels:
        accuracy = row.predictions.accuracy()
        print(f"{name}: top-1 {accuracy.top1:.2f} % of {accuracy.count} images", flush=True)


def evaluate(arguments: argparse.Namespace) -> None:
    """Print the accuracy of a quantized network that was written before."""
    device = resolve_device(arguments.device)
    read = artifact.load(arguments.evaluate)
    told = {"--arch": arguments.model, "--path": arguments.path, "--bit_cfg": arguments.bit_cfg}
    told |= {"--quant_scheme": arguments.quant_scheme, "--input_size": arguments.input_size}
    unused = [option for option, value in told.items() if value is not None]
    if unused:
        print(f"note: the folder tells the network; not used: {', '.join(unused)}")
    test = labelled_images_of(arguments, read.preprocess, arguments.batch_size)
    print(f"{read.title}: {predict(read.network.module, test, device).accuracy()}")
    _print_notes(unreadable_note(test.skipped))


def run() -> None:
    """Parse, then quantize or evaluate."""
    arguments = build_parser().parse_args()
    if Ranks.from_environment().world_size > 1:
        raise OmpqError("reconstruction runs in one process; start it without torchrun")
    seed_everything(arguments.seed)
    if arguments.evaluate is not None:
        evaluate(arguments)
    else:
        quantize(arguments)


def main() -> None:
    """Entry point of the console command."""
    run_script(run)


if __name__ == "__main__":
    main()
