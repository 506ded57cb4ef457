"""A quantized network that a script wrote before, read and judged by images."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ompq import artifact
from ompq.artifact import Artifact
from ompq.data import DATASETS, unreadable_note
from ompq.errors import OmpqError
from ompq.evaluation import predict
from ompq.options import check_classes, make_evaluation_loader, note_unused, print_images
from ompq.stored_images import find_data
from ompq.verification import verify

_LEAST_BATCH = 64


def load_named(field: str, path: Path) -> Artifact:
    """Read the quantized network that an option names.

    Args:
        field: Name of the option's field, for the message.
        path: Path of the file, or of the folder that holds it.

    Raises:
        OmpqError: It cannot be read.
    """
    try:
        return artifact.load_quantized(path)
    except OmpqError as error:
        raise OmpqError(f"`{field}`: {error}") from error


def evaluate_stored(arguments: argparse.Namespace, folder: Path, device: torch.device) -> None:
    """Print the accuracy of a network that was written before, and whether integers agree.

    Args:
        arguments: Arguments of a script with the options `evaluate` and `integer_only`.
        folder: Folder, or file, that `evaluate` names.
        device: Device to compute on.
    """
    read = load_named("evaluate", folder)
    arguments.parser.print_notes(note_unused(arguments))
    _choose_data(arguments, folder)
    loader = make_evaluation_loader(
        arguments,
        read.preprocess,
        max(_LEAST_BATCH, arguments.batch_size),
        class_names=read.class_names,
        num_classes=read.num_classes,
    )
    print_images(arguments, read.preprocess, loader.notes)
    arguments.parser.print_notes(check_classes(loader.num_classes, read.num_classes))
    if arguments.integer_only:
        found = verify(read, loader, device)
        print(f"{read.title}, integer arithmetic alone: {found}")
        if found.equal != found.accuracy.count:
            raise OmpqError("integer arithmetic and simulation differ; please report this network")
    else:
        print(f"{read.title}: {predict(read.network.module, loader, device).accuracy()}")
    arguments.parser.print_notes(unreadable_note(loader.skipped))


def _choose_data(arguments: argparse.Namespace, folder: Path) -> None:
    """Take the data set of the run that wrote the network, where the user names none."""
    # The default is this very object; what a user types, though it be equal, is another one.
    if arguments.dataset is not arguments.parser.get_default("dataset"):
        return
    dataset, root = find_data(folder, arguments.data)
    if dataset in DATASETS:
        arguments.dataset, arguments.data = dataset, root
        arguments.parser.print_note(f"the images are those of the run: `dataset` {dataset}")
