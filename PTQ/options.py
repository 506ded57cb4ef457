"""The command line of `main_imagenet.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from ompq.assignment import Assignment, assign, resolve, uniform
from ompq.data import CalibrationImages, calibration_images, load_calibration_file
from ompq.errors import OmpqError
from ompq.graph import NetworkGraph
from ompq.graph.subgraphs import GRANULARITIES
from ompq.options import (
    Parser,
    add_configuration_choice,
    add_data_options,
    add_deployment_options,
    add_network_options,
    add_run_options,
    add_target,
)
from ompq.preprocess import Preprocess
from ompq.target import Target, read_matching_target
from PTQ.settings import CACHE_DEVICES, LOSSES, Settings

DEFAULT_ACT_BITS = 4

# Fields of the library whose options are called otherwise in this script.
_FIELDS = {
    "per_channel": "channel_wise",
    "symmetric": "sym",
    "weight_iterations": "iters_w",
    "act_iterations": "iters_a",
    "tuning_iterations": "iters_t",
    "rounding_weight": "weight",
    "act_lr": "lr",
    "act_power": "p",
    "drop_probability": "drop_prob",
    "num_images": "num_samples",
    "act_bits": "n_bits_a",
    "folder": "output_dir",
}


def build_parser() -> Parser:
    """Build the parser with all options of the script."""
    parser = Parser(
        prog="main_imagenet.py",
        description="Quantize a trained network after training, block by block, from about a "
        "thousand images.",
        fields=_FIELDS,
    )
    add_network_options(parser, "--arch", "-a", "--model", required=False)
    _add_data_options(parser)
    _add_configuration_options(parser)
    _add_reconstruction_options(parser)
    add_run_options(parser, "ptq_output", seed=1005, workers=4)
    group = parser.add_argument_group("what to do")
    group.add_argument(
        "--evaluate", type=Path, metavar="DIR", help="evaluate the quantized network of that folder"
    )
    group.add_argument(
        "--integer_only",
        action="store_true",
        help="with --evaluate: also run it with integer arithmetic alone, and compare to the bit",
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
        help=".pt or .npy of normalised images n×C×H×W to calibrate with, all of them",
    )
    group.add_argument("--batch_size", type=int, default=64, help="images per evaluation batch")
    group.add_argument(
        "--augment", action="store_true", help="training transforms for the calibration images"
    )


def _add_configuration_options(parser: argparse.ArgumentParser) -> None:
    group = add_configuration_choice(
        parser,
        "configuration",
        list_help='a list such as "[4, 3, 8]", a bit_config.json, or '
        "layers and their bits of another tool: NNCF's, ModelOpt's or MCT's JSON, or a CSV",
    )
    add_target(group, "what contradicts it is refused; it sets --sym, --channel_wise, --act_quant")
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
    group.add_argument(
        "--sym",
        action=argparse.BooleanOptionalAction,
        help="quantize weights symmetrically, without zero point (default: those of 8 bits)",
    )
    add_deployment_options(group)
    group.add_argument(
        "--equalise_norms",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="move the ranges of a norm's channels into the layers behind it, where these gain",
    )
    group.add_argument(
        "--correct_biases",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let biases take back what quantization does to the means of layers",
    )
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
    group.add_argument(
        "--updates_per_step",
        type=int,
        help="updates that a step of a block is taken in, each by its part of 32 images "
        "(default: up to 4 where there are at most 250 steps)",
    )
    group.add_argument(
        "--iters_t",
        type=int,
        help="steps that tune all scales and biases together at the end, by the divergence from "
        "the float network (default: as --iters_a with --act_quant, else none)",
    )
    group.add_argument(
        "--vary_images",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="learn from mirrored and shifted copies of the images too, and tune on mixed ones",
    )
    group.add_argument(
        "--varied_copies",
        type=int,
        help="copies of each image that blocks learn from (default: 3 of small images, else none)",
    )
    group.add_argument("--lr", type=float, default=4e-4, help="learning rate of activation scales")
    group.add_argument("--p", type=float, default=2.4, help="p of the activations' L_p loss")
    group.add_argument("--loss", choices=LOSSES, default="mse", help="loss of a block")
    group.add_argument(
        "--drop_prob", type=float, help="QDrop: share of activations left in float while learning"
    )
    group.add_argument(
        "--granularity", choices=GRANULARITIES, default="block", help="learned at a time"
    )
    group.add_argument(
        "--cache_device", choices=CACHE_DEVICES, default="auto", help="home of the activations"
    )


def read_requested_target(arguments: argparse.Namespace) -> Target | None:
    """Read the target that the command line names; None without one.

    Raises:
        OmpqError: The file is no target, or another option contradicts it.
    """
    return read_matching_target(
        arguments.target,
        symmetric=arguments.sym,
        per_channel=arguments.channel_wise,
        act_bits=arguments.n_bits_a,
    )


def read_settings(arguments: argparse.Namespace) -> Settings:
    """Return the settings of the reconstruction that the command line and its target ask for."""
    target = read_requested_target(arguments)
    symmetric, per_channel, act_quant = (
        arguments.sym,
        arguments.channel_wise,
        arguments.act_quant,
    )
    if target is not None:
        symmetric = True if target.symmetric else symmetric
        per_channel = per_channel or bool(target.per_channel)
        act_quant = act_quant or target.activation_bits is not None
    return Settings(
        per_channel=per_channel,
        symmetric=symmetric,
        act_quant=act_quant,
        quantize_sums=arguments.quantize_sums,
        equalise_norms=arguments.equalise_norms,
        equalise_layers=arguments.equalise_layers,
        correct_biases=arguments.correct_biases,
        weight_iterations=arguments.iters_w,
        act_iterations=arguments.iters_a,
        updates_per_step=arguments.updates_per_step,
        tuning_iterations=arguments.iters_t,
        vary_images=arguments.vary_images,
        varied_copies=arguments.varied_copies,
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


def read_assignment(arguments: argparse.Namespace, graph: NetworkGraph) -> Assignment:
    """Return the bit widths that the command line asks for.

    Args:
        arguments: Arguments of `build_parser`.
        graph: Network that gets the widths.

    Raises:
        OmpqError: The configuration does not fit the network, the target or the other options.
    """
    target = read_requested_target(arguments)
    if target is None:
        return _read_assignment(arguments, graph, DEFAULT_ACT_BITS)
    usual = target.choose_act_bits(DEFAULT_ACT_BITS)
    assignment = _read_assignment(arguments, graph, usual)
    target.check(assignment, graph, act_quant=read_settings(arguments).act_quant)
    return assignment


def _read_assignment(
    arguments: argparse.Namespace, graph: NetworkGraph, usual_act_bits: int
) -> Assignment:
    """Return the widths; `usual_act_bits` are those of activations where nothing tells any."""
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
            act_bits=usual_act_bits if is_list and act_bits is None else act_bits,
        )
    act_bits = usual_act_bits if act_bits is None else act_bits
    if arguments.disable_8bit_head_stem:
        widths = [arguments.n_bits_w] * len(graph.groups)
        return assign(graph.groups, "PTQ", widths, act_bits)
    return uniform(graph.groups, arguments.n_bits_w, act_bits)


def read_calibration_images(
    arguments: argparse.Namespace, preprocess: Preprocess
) -> tuple[CalibrationImages, Preprocess]:
    """Read the calibration images that the command line names.

    Args:
        arguments: Arguments of `build_parser`.
        preprocess: Preprocessing of the network's images.

    Returns:
        The images, and the preprocessing that gives test images the size of these.

    Raises:
        OmpqError: The images cannot be read, are too few, or are not square.
    """
    if arguments.calibration_data is not None:
        images = load_calibration_file(arguments.calibration_data, preprocess.channels)
        return CalibrationImages(images, torch.full((len(images),), -1), []), _match_size(
            images, preprocess
        )
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
    return found, _match_size(found.images, preprocess)


def _match_size(images: Tensor, preprocess: Preprocess) -> Preprocess:
    """Return the preprocessing that gives test images the size of the calibration images."""
    height, width = images.shape[-2:]
    if height != width:
        raise OmpqError(
            f"--calibration_data holds images of {height}×{width}; the test images are square, "
            "and the network is quantized for one size"
        )
    return preprocess if height == preprocess.input_size else preprocess.at(height)
