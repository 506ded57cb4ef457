"""What a fine-tuning consists of, from the command line."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ompq.artifact import Artifact
from ompq.assignment import Assignment, assign, resolve
from ompq.bit_import import read_layer_bits
from ompq.data import CalibrationImages, Loader, calibration_images, make_loader
from ompq.errors import OmpqError
from ompq.files import checksum
from ompq.graph import NetworkGraph, check_network, describe_float_parts, trace
from ompq.integer import IntegerNetwork, describe_operations
from ompq.integer.network import select_computing
from ompq.options import (
    check_classes,
    json_ready,
    load_requested_network,
    make_evaluation_loader,
    print_images,
)
from ompq.preprocess import Preprocess
from ompq.runtime import Ranks
from ompq.stored import load_named
from ompq.zoo import RANDOM_WEIGHTS, RANDOM_WEIGHTS_NOTE, Network
from QAT.checkpoint import LEARNED_STEPS, WEIGHTS
from QAT.distillation import Teacher, load_teacher
from QAT.hawq import match_dictionary, read_dictionary
from QAT.initialise import prepare
from QAT.options import (
    BINDING_OPTIONS,
    DEFAULT_SCHEME,
    LEARNED,
    list_unused_options,
    read_conversion_settings,
    read_requested_target,
)
from QAT.settings import TrainingSettings
from QAT.task import TrainingTask

CALIBRATION_IMAGES = 512
# Places that the note on what stays in float names.
_NAMED = 12


@dataclass(frozen=True)
class PreparedRun:
    """A fine-tuning before its first step.

    Attributes:
        network: Float network, as it was loaded.
        graph: The network as it was traced and checked.
        preprocess: Preprocessing of its images.
        assignment: Widths of its groups.
        loaders: Training and test images.
        skipped: Unreadable calibration images.
        task: Converted network, images and settings of the training.
    """

    network: Network
    graph: NetworkGraph
    preprocess: Preprocess
    assignment: Assignment
    loaders: tuple[Loader, Loader]
    skipped: list[str]
    task: TrainingTask


def prepare_run(
    arguments: argparse.Namespace, settings: TrainingSettings, ranks: Ranks, device: torch.device
) -> PreparedRun:
    """Load, trace and convert what the command line names, and print what it is.

    Args:
        arguments: Arguments of `QAT.options.build_parser`.
        settings: Settings of the training.
        ranks: This process among those that share the work.
        device: Device to compute on.

    Raises:
        OmpqError: Something is missing, or does not go together.
    """
    target = read_requested_target(arguments)
    if arguments.path is not None:
        # The published command asks for the library's weights as well; a checkpoint goes before.
        arguments.pretrained = False
    network, preprocess = load_requested_network(arguments)
    training, test = _open_loaders(arguments, preprocess, ranks, network.num_classes)
    print_images(arguments, preprocess, [*training.notes, *test.notes])
    side = preprocess.input_size
    graph = trace(network.module.to(device), (preprocess.channels, side, side))
    notes = list_unused_options(arguments)
    notes += _check_labels(arguments, training, graph.num_outputs)
    print_notes_once(arguments, ranks, notes)
    images = _read_calibration_images(arguments, preprocess)
    tell = partial(_tell, arguments, ranks)
    # Before the widths are chosen: what the check leaves in float has none.
    graph = check_network(graph, images.images, tell)
    source = None
    if arguments.init_from is not None:
        source = load_named("init_from", arguments.init_from)
    assignment = _choose_assignment(arguments, graph, source)
    if target is not None:
        target.check(assignment, graph)
    if network.source == RANDOM_WEIGHTS:
        print_notes_once(arguments, ranks, [RANDOM_WEIGHTS_NOTE])
    print_notes_once(arguments, ranks, network.notes)
    tell(describe_float_parts(graph.float_layers, graph.parameters))
    print_once(ranks, _describe(network, assignment, training))
    teacher = load_teacher(arguments, graph.num_outputs, preprocess, device)
    if teacher is not None:
        print_once(ranks, _describe_teacher(arguments, teacher))
    conversion = read_conversion_settings(arguments)
    converted = prepare(
        graph,
        assignment,
        images.images,
        conversion,
        source=source,
        even_channels=arguments.equalise_layers,
        say=tell,
    )
    print_notes_once(arguments, ranks, _note_float_operations(converted))
    task = TrainingTask(
        network=converted,
        teacher=teacher,
        train=training,
        test=test,
        settings=settings,
        device=device,
        ranks=ranks,
        folder=arguments.output_dir,
        fingerprint=_fingerprint(arguments, network, assignment, len(training)),
        log=_open_log(arguments, ranks),
    )
    loaders = (training, test)
    return PreparedRun(network, graph, preprocess, assignment, loaders, images.skipped, task)


def _open_loaders(
    arguments: argparse.Namespace, preprocess: Preprocess, ranks: Ranks, num_classes: int
) -> tuple[Loader, Loader]:
    """Return this rank's share of the training images, and of the test images."""
    per_rank, remainder = divmod(arguments.batch_size, ranks.world_size)
    if remainder or per_rank < 1:
        raise OmpqError(
            f"`batch_size` {arguments.batch_size} cannot be shared by {ranks.world_size} processes"
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
        fraction=arguments.data_percentage,
        num_classes=num_classes,
    )
    size = max(per_rank, 64)
    test = make_evaluation_loader(arguments, preprocess, size, ranks, num_classes=num_classes)
    return training, test


def _check_labels(arguments: argparse.Namespace, training: Loader, num_classes: int) -> list[str]:
    """Return notes on labels that are not all of the network's; refuse what has none."""
    if not training.num_classes:
        raise OmpqError(f"`dataset` {arguments.dataset} has no labels to train with; use PTQ")
    return check_classes(training.num_classes, num_classes)


def _choose_assignment(
    arguments: argparse.Namespace, graph: NetworkGraph, source: Artifact | None
) -> Assignment:
    """Return the widths that the command line names, or those of the network to start from."""
    given = arguments.quant_scheme if arguments.bit_cfg is None else arguments.bit_cfg
    if source is not None:
        _check_same_network(source, graph)
    if given is None and source is not None:
        held = source.description
        if arguments.act_bits is not None:
            return assign(graph.groups, "PTQ", held["bits"], arguments.act_bits)
        without = assign(graph.groups, "PTQ", held["bits"], held["act_bits"])
        return replace(without, group_act_bits=tuple(held["activation_bits"]))
    given = DEFAULT_SCHEME if given is None else given
    imported = read_layer_bits(given.strip())
    named = read_dictionary(given) if imported is None else None
    if named is not None:
        if arguments.act_bits is not None:
            raise OmpqError("a HAWQ dictionary tells the activations' widths; leave `act_bits` out")
        return match_dictionary(named, graph)
    return resolve(given, graph.groups, "QAT", act_bits=arguments.act_bits)


def _check_same_network(source: Artifact, graph: NetworkGraph) -> None:
    if source.description["groups"] != [list(group.layers) for group in graph.groups]:
        raise OmpqError(
            f"`init_from` is of another network ({source.description['architecture']['name']}); "
            "its layers are not those of `model`"
        )


def _read_calibration_images(
    arguments: argparse.Namespace, preprocess: Preprocess
) -> CalibrationImages:
    """Read the images that tell the first ranges of the activations."""
    return calibration_images(
        arguments.dataset,
        arguments.data,
        preprocess,
        CALIBRATION_IMAGES,
        seed=arguments.seed,
        backend=arguments.loader,
        workers=arguments.workers,
    )


def _fingerprint(
    arguments: argparse.Namespace, network: Network, assignment: Assignment, steps: int
) -> dict[str, Any]:
    """Return what a resumed run must have in common with the one that was killed."""
    ready = json_ready(arguments)
    given = {name: ready[name] for name in BINDING_OPTIONS}
    if arguments.quantizer == LEARNED and arguments.channel_wise:
        given[LEARNED_STEPS] = "of weights"
    path = network.source if arguments.path is None else str(Path(arguments.path).resolve())
    return given | {
        WEIGHTS: {"path": path, "checksum": checksum(network.module.state_dict().values())},
        "weight bits": list(assignment.widths),
        "activation bits": list(assignment.activations),
        "steps per epoch": steps,
    }


def _open_log(arguments: argparse.Namespace, ranks: Ranks) -> Any:
    """Return what takes scalars for TensorBoard; None unless asked for."""
    if not arguments.tensorboard or not ranks.is_main:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OmpqError(
            "`tensorboard` needs the package tensorboard; pip install tensorboard"
        ) from error
    return SummaryWriter(arguments.output_dir / "tensorboard")


def _describe(network: Network, assignment: Assignment, training: Loader) -> str:
    return (
        f"{network.name}: {assignment.float_size_mb:.4f} → {assignment.size_mb:.4f} MB, "
        f"A {assignment.act_bits}, {training.num_images} training images\n"
        f"weight bits: {list(assignment.widths)}"
    )


def _describe_teacher(arguments: argparse.Namespace, teacher: Teacher) -> str:
    own, student = teacher.own, teacher.student
    seen = "sees the student's images" if own == student else f"sees {own.describe()}"
    return f"teacher {arguments.teacher_arch}: {seen}"


def _note_float_operations(network: IntegerNetwork) -> list[str]:
    """Name what is in float, by the modules that it is in or, where these are many, by itself."""
    operations = select_computing(network.float_operations)
    found = describe_operations(network.module, operations)
    if len(found) > _NAMED:
        counts = Counter(operations.values()).most_common()
        found = [f"{what} ({count}×)" for what, count in counts]
    if not found:
        return []
    named = ", ".join(found)
    return [f"without an integer form, and so in float: {named}; results.json names them all"]


def _tell(arguments: argparse.Namespace, ranks: Ranks, note: str) -> None:
    print_notes_once(arguments, ranks, [note])


def print_once(ranks: Ranks, text: str) -> None:
    """Print a text on the first rank alone."""
    if ranks.is_main:
        print(text, flush=True)


def print_notes_once(arguments: argparse.Namespace, ranks: Ranks, notes: Iterable[str]) -> None:
    """Print messages of the library, with the script's flags in them, on the first rank alone.

    Args:
        arguments: Arguments of `QAT.options.build_parser`, which hold the parser.
        ranks: This process among those that share the work.
        notes: Messages to print, one line each.
    """
    if ranks.is_main:
        arguments.parser.print_notes(notes)
