"""The network that a fine-tuning starts from: first scales from images, or those of PTQ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from ompq.adoption import adopt
from ompq.artifact import Artifact
from ompq.assignment import Assignment, check_assignment
from ompq.data import collect_images
from ompq.equalisation import equalise_layers
from ompq.errors import OmpqError
from ompq.evaluation import find_device
from ompq.graph import NetworkGraph, fold_batch_norm, trace_for
from ompq.graph.copying import copy_traced
from ompq.graph.training_mode import describe_training, switch_arguments
from ompq.integer import (
    ConversionSettings,
    IntegerNetwork,
    calibrate,
    convert_to_integers,
    prove,
    start_learning_steps,
)
from ompq.quantized import QuantizedNetwork
from ompq.runtime import say

CALIBRATION_BATCH = 64
# Layers that a note names.
_NAMED = 8


def prepare(
    network: nn.Module | NetworkGraph,
    assignment: Assignment,
    images: Tensor | Iterable[Tensor | Sequence[Tensor]],
    settings: ConversionSettings | None = None,
    *,
    source: Artifact | None = None,
    even_channels: bool = True,
    say: Callable[[str], None] = say,
) -> IntegerNetwork:
    """Convert a network to integers, and calibrate it, for fine-tuning.

    Its integers are run beside its simulation; what differs stays in float.

    Args:
        network: Float network, a module or its traced graph; it is copied, never changed.
        assignment: Widths of its groups.
        images: Calibration images, n × channels × height × width, normalised, or batches of them,
            as a `DataLoader` yields them; a module is traced for images of their size.
        settings: Settings of the conversion; None for the defaults.
        source: Network that was quantized to these widths, to start from; None for the float one.
        even_channels: Whether channels between two layers of the float network are made even first,
            where weights have a scale per channel.
        say: Function that is told what had to be left as it is, and what is lost.

    Returns:
        The network to fine-tune, on the device of the float network.

    Raises:
        OmpqError: `source` is of another network, or of other widths.
    """
    images = collect_images(images)
    graph, settings = trace_for(network, images, say), settings or ConversionSettings()
    check_assignment(assignment, graph)
    if source is not None:
        _check_widths(source, assignment)
    widths = assignment.layer_bits(), assignment.layer_act_bits()
    # The integers of a quantized network are those of its folded weights.
    structure = graph if source is None else fold_batch_norm(graph)
    if source is None and even_channels and settings.rule.per_channel:
        structure = graph.with_module(copy_traced(graph.module))
        equalise_layers(structure, *widths, images, say)

    def convert(left_in_float: frozenset[str]) -> IntegerNetwork:
        return convert_to_integers(structure, *widths, settings, left_in_float)

    def start(converted: IntegerNetwork) -> None:
        if source is not None:
            adopt(converted, source.network)
        calibrate(converted, images.split(CALIBRATION_BATCH), find_device(converted.module))
        if settings.learned:
            start_learning_steps(converted, settings.rule.per_channel)

    converted = prove(convert, start, structure, images)
    switch_arguments(converted.module)
    converted.notes += _note_clamped_biases(converted, settings)
    converted.notes += describe_training(graph.module)
    for note in converted.notes:
        say(note)
    return converted


def _note_clamped_biases(network: IntegerNetwork, settings: ConversionSettings) -> list[str]:
    clamped = network.find_clamped_biases()
    if not clamped:
        return []
    named = ", ".join(clamped[:_NAMED]) + (
        f" and {len(clamped) - _NAMED} more" * (len(clamped) > _NAMED)
    )
    return [f"`bias_bits` {settings.bias_bits} is too narrow, and biases are clamped, in {named}"]


def _check_widths(source: Artifact, assignment: Assignment) -> None:
    """Refuse other widths than those that PTQ found scales for."""
    found: list[tuple[str, list[int], list[int]]] = [
        ("weights", source.description["bits"], list(assignment.widths))
    ]
    network = source.network
    if not isinstance(network, QuantizedNetwork) or any(
        quantizer.enabled for quantizer in network.activations().values()
    ):
        activations = source.description["activation_bits"]
        found.append(("activations", activations, list(assignment.activations)))
    for what, given, asked in found:
        if given != asked:
            raise OmpqError(
                f"`source` holds {what} of {given} bits, the configuration asks for {asked}; "
                "leave the configuration out, or run PTQ with it first"
            )
