"""What a fine-tuning consists of, from the command line."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ompq import artifact
from ompq.artifact import Artifact
from ompq.bitconfig import Assignment, assign, resolve
from ompq.data import Loader, calibration_images, make_loader
from ompq.errors import OmpqError
from ompq.fixed_point import IntegerNetwork, RangeRule, Scheme
from ompq.graph import NetworkGraph, trace
from ompq.options import check_classes, json_ready, labelled_images_of, network_of
from ompq.preprocess import Preprocess
from ompq.runtime import Ranks
from ompq.zoo import RANDOM_WEIGHTS, Network, load_network
from QAT.hawq import assignment_of_names, read_dictionary
from QAT.settings import TrainingSettings
from QAT.start import begin
from QAT.training import Task

CALIBRATION_IMAGES = 512
DEFAULT_SCHEME = "uniform8"
# Options that a resumed run must repeat.
_BINDING = """
model seed dataset input_size init_from batch_size data_percentage epochs start_epoch lr momentum wd
fix_BN fix_BN_threshold quantizer quant_mode channel_wise act_range_momentum act_percentile
weight_percentile bias_bit fixed_point_quantization distill_method teacher_arch teacher_path
distill_alpha temperature evaluate_times amp
""".split()


@dataclass(frozen=True)
class Begun:
    """A fine-tuning before its first step."""

    network: Network
    preprocess: Preprocess
    assignment: Assignment
    task: Task


def begin_run(
    arguments: argparse.Namespace, settings: TrainingSettings, ranks: Ranks, device: torch.device
) -> Begun:
    """Load, read, convert what the command line names, and say what it is.

    Args:
        arguments: of `QAT.options.build_parser`.
        settings: of the training.
        ranks: this process among those that share the work.
        device: to compute on.

    Raises:
        OmpqError: something is missing, or does not go together.
    """
    if arguments.path is not None:
        # The published command gives --pretrained; a checkpoint of one's own goes before it.
        arguments.pretrained = False
    network, preprocess = network_of(arguments)
    training, test = _loaders(arguments, preprocess, ranks)
    side = preprocess.input_size
    graph = trace(network.module.to(device), (preprocess.channels, side, side))
    _check_labels(arguments, training, graph.num_outputs)
    source = None if arguments.init_from is None else artifact.load(arguments.init_from)
    assignment = _assignment(arguments, graph, source)
    say_once(ranks, _introduction(network, assignment, training))
    converted = _converted(arguments, graph, assignment, preprocess, source)
    if converted.float_operations:
        say_once(ranks, _left_in_float(converted.float_operations))
    task = Task(
        converted,
        _teacher(arguments, graph.num_outputs, device),
        training,
        test,
        settings,
        device,
        ranks,
        arguments.output_dir,
        _fingerprint(arguments, assignment, len(training)),
        _log(arguments, ranks),
    )
    return Begun(network, preprocess, assignment, task)


def _loaders(
    arguments: argparse.Namespace, preprocess: Preprocess, ranks: Ranks
) -> tuple[Loader, Loader]:
    """This rank's share of the training images, and of the test images."""
    if not 0 < arguments.data_percentage <= 1:
        raise OmpqError(
            f"--data_percentage is {arguments.data_percentage}; it is a share between 0 and 1"
        )
    per_rank, remainder = divmod(arguments.batch_size, ranks.world_size)
    if remainder or per_rank < 1:
        raise OmpqError(
            f"--batch_size {arguments.batch_size} cannot be shared by {ranks.world_size} processes"
        )
    training = make_loader(
        arguments.dataset,
        arguments.data,
        "train",
        preprocess,
        per_rank,
        augment=True,
        shuffle=True,
        seed=arguments.seed,
        workers=arguments.workers,
        backend=arguments.loader,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    if arguments.data_percentage < 1:
        training.num_samples = max(
            ranks.world_size, round(arguments.data_percentage * training.num_images)
        )
    return training, labelled_images_of(arguments, preprocess, max(per_rank, 64), ranks)


def _check_labels(arguments: argparse.Namespace, training: Loader, num_classes: int) -> None:
    if not training.num_classes:
        raise OmpqError(f"--dataset {arguments.dataset} has no labels to train with; use PTQ")
    check_classes(training.num_classes, num_classes)


def _assignment(
    arguments: argparse.Namespace, graph: NetworkGraph, source: Artifact | None
) -> Assignment:
    given = arguments.quant_scheme if arguments.bit_cfg is None else arguments.bit_cfg
    if source is not None:
        _check_same_network(source, graph)
    if given is None and source is not None:
        held = source.description
        if arguments.act_bits is not None:
            return assign(graph.groups, "PTQ", held["bits"], arguments.act_bits)
        plain = assign(graph.groups, "PTQ", held["bits"], held["act_bits"])
        return replace(plain, group_act_bits=tuple(held["activation_bits"]))
    given = DEFAULT_SCHEME if given is None else given
    named = read_dictionary(given)
    if named is not None:
        if arguments.act_bits is not None:
            raise OmpqError("a HAWQ dictionary tells the activations' widths; leave --act_bits out")
        return assignment_of_names(named, graph)
    return resolve(given, graph.groups, "QAT", act_bits=arguments.act_bits)


def _check_same_network(source: Artifact, graph: NetworkGraph) -> None:
    if source.description["groups"] != [list(group.layers) for group in graph.groups]:
        raise OmpqError(
            f"--init_from is of another network ({source.description['architecture']['name']}); "
            "its layers are not those of --arch"
        )


def _converted(
    arguments: argparse.Namespace,
    graph: NetworkGraph,
    assignment: Assignment,
    preprocess: Preprocess,
    source: Artifact | None,
) -> IntegerNetwork:
    """The network that is trained, with its first ranges or those of PTQ."""
    rule = RangeRule(
        per_channel=arguments.channel_wise,
        weight_percentile=arguments.weight_percentile,
        act_percentile=arguments.act_percentile,
        momentum=arguments.act_range_momentum,
        asymmetric=arguments.quant_mode == "asymmetric",
    )
    scheme = Scheme(
        rule=rule,
        bias_bits=arguments.bias_bit,
        dyadic=not arguments.fixed_point_quantization,
        learned=arguments.quantizer == "lsq",
    )
    found = calibration_images(
        arguments.dataset,
        arguments.data,
        preprocess,
        CALIBRATION_IMAGES,
        seed=arguments.seed,
        backend=arguments.loader,
        workers=arguments.workers,
    )
    return begin(graph, assignment, scheme, found.images, source)


def _teacher(
    arguments: argparse.Namespace, num_classes: int, device: torch.device
) -> nn.Module | None:
    if arguments.distill_method == "None":
        return None
    try:
        teacher = load_network(
            arguments.teacher_arch,
            path=arguments.teacher_path,
            pretrained=arguments.teacher_path is None,
            num_classes=None if arguments.teacher_path else num_classes,
        )
    except OmpqError as error:
        told = str(error).replace("--path", "--teacher_path")
        raise OmpqError(f"--teacher_arch {arguments.teacher_arch}: {told}") from error
    if teacher.num_classes != num_classes:
        raise OmpqError(
            f"the teacher {arguments.teacher_arch} has {teacher.num_classes} classes, the network "
            f"{num_classes}; give --teacher_path a checkpoint for these images"
        )
    return teacher.module.to(device).eval()


def _fingerprint(
    arguments: argparse.Namespace, assignment: Assignment, steps: int
) -> dict[str, Any]:
    """What a resumed run must have in common with the one that was killed."""
    ready = json_ready(arguments)
    given = {name: ready[name] for name in _BINDING}
    return given | {
        "weight bits": list(assignment.widths),
        "activation bits": list(assignment.activations),
        "steps per epoch": steps,
    }


def _log(arguments: argparse.Namespace, ranks: Ranks) -> Any:
    """What takes scalars for TensorBoard; None unless asked for."""
    if not arguments.tensorboard or not ranks.is_main:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OmpqError(
            "--tensorboard needs the package tensorboard; pip install tensorboard"
        ) from error
    return SummaryWriter(arguments.output_dir / "tensorboard")


def _introduction(network: Network, assignment: Assignment, training: Loader) -> str:
    lines = []
    if network.source == RANDOM_WEIGHTS:
        lines.append("note: the network has random weights; give a checkpoint with --path")
    lines.append(
        f"{network.name}: {assignment.float_size_mb:.4f} → {assignment.size_mb:.4f} MB, "
        f"A {assignment.act_bits}, {training.num_images} training images"
    )
    lines.append(f"weight bits: {list(assignment.widths)}")
    return "\n".join(lines)


def _left_in_float(operations: Mapping[str, str]) -> str:
    counts = Counter(operations.values())
    named = ", ".join(f"{what} ({count}×)" for what, count in counts.most_common())
    return f"note: without an integer form, and so in float: {named}; results.json names them all"


def say_once(ranks: Ranks, text: str) -> None:
    """Print, on the first rank alone."""
    if ranks.is_main:
        print(text, flush=True)
