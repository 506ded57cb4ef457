"""The whole network, part after part, in one pass of the calibration images."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from ompq.bitconfig import Assignment
from ompq.errors import OmpqError
from ompq.graph import NetworkGraph, Part, extract, parts_of
from ompq.quantized import QuantizedNetwork, QuantizedWeight, prepare
from ompq.quantizers import QuantParams, activation_quantizers
from ompq.runtime import say
from PTQ.cache import Cache
from PTQ.fisher import output_importances
from PTQ.reconstruct import (
    Examples,
    reconstruct_activations,
    reconstruct_weights,
    round_part,
)
from PTQ.recovery import Recovery
from PTQ.results import PartReport, PartResult
from PTQ.settings import Settings

MINIMUM_IMAGES = 2


def rounded(graph: NetworkGraph, assignment: Assignment, settings: Settings) -> QuantizedNetwork:
    """The network with weights rounded to nearest and activations in float: where all begins."""
    network = prepare(graph, assignment)
    bits = assignment.layer_bits()
    with torch.no_grad():
        nearest = round_part(network.module, bits, settings)
    for layer in bits:
        network.set_weight(
            layer, QuantizedWeight.of(nearest.integers[layer], nearest.params[layer])
        )
    return network


def quantize_network(
    graph: NetworkGraph,
    assignment: Assignment,
    images: Tensor,
    settings: Settings,
    cache: Cache,
    recovery: Recovery,
    say: Callable[[str], None] = say,
) -> tuple[QuantizedNetwork, list[PartReport]]:
    """Quantize a network by reconstructing its parts in order (BRECQ, arXiv:2102.05426).

    Every image goes once through the float network and once through the quantized one: a part's
    outputs are kept until the parts that read them are done. A part learns from what the quantized
    network before it hands it, and is to give what the float network gives.

    Args:
        graph: the float network, on the device to compute on.
        assignment: the widths of its groups.
        images: n × channels × height × width, normalised; n ≥ 2.
        settings: see `Settings`.
        cache: gives room for what lies between the parts.
        recovery: remembers finished parts, so that a killed run can go on.
        say: told what a user should know.

    Returns:
        the network with its activation quantizers enabled if they were asked for, and one report
        per part.

    Raises:
        OmpqError: too few images, NaN in them, or no room for the values between parts.
    """
    _check(images)
    teacher = prepare(graph, assignment)
    student = teacher.copy()
    parts = parts_of(teacher.graph, settings.granularity)
    device = next(teacher.module.parameters()).device
    entry = parts[0].inputs[0]
    plain, quantized = {entry: images}, {entry: images}
    importances: dict[str, Tensor] = {}
    if settings.loss == "fisher_diag":
        importances = output_importances(teacher.module, parts, images, cache, settings.seed)
    reports = []
    say("loss of every part on the calibration images, rounded → learned:")
    for number, part in enumerate(parts):
        source, target = extract(teacher.module, part), extract(student.module, part)
        plain |= _run(source, part, plain, cache, device)
        examples = Examples(
            [quantized[name] for name in part.inputs],
            [plain[name] for name in part.inputs],
            [plain[name] for name in part.outputs],
            [importances.get(name) for name in part.outputs],
            device,
        )
        result = recovery.load(number)
        if result is None:
            torch.manual_seed(zlib.crc32(f"{settings.seed} {number}".encode()))
            title = f"{number + 1}/{len(parts)} {part.name}"
            fresh = [layer for layer in part.layers if layer not in student.weights]
            result = _reconstruct(target, part, fresh, examples, assignment, settings, title)
            recovery.save(number, result)
        _apply(student, target, result, settings)
        say(f"{number + 1:>3}/{len(parts)} {result.report.line()}")
        reports.append(result.report)
        quantized |= _run(target, part, quantized, cache, device)
        _forget(parts[number + 1 :], plain, quantized)
    return student, reports


def _check(images: Tensor) -> None:
    if len(images) < MINIMUM_IMAGES:
        raise OmpqError(f"reconstruction needs {MINIMUM_IMAGES} images or more, not {len(images)}")
    bad = (~images.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise OmpqError(
            f"calibration image {bad[0]} (of {len(bad)} such) holds NaN or infinity; leave it out"
        )


def _reconstruct(
    target: GraphModule,
    part: Part,
    layers: Sequence[str],
    examples: Examples,
    assignment: Assignment,
    settings: Settings,
    title: str,
) -> PartResult:
    """Decide the weights, then the activations, of one part; its modules take the values over.

    `layers` are those of the part that no earlier part called (and so decided) already.
    """
    start = time.perf_counter()
    widths = assignment.layer_bits()
    bits = {layer: widths[layer] for layer in layers}
    for quantizer in activation_quantizers(target).values():
        quantizer.enabled = False
    weights = reconstruct_weights(target, examples, bits, settings, title)
    for layer in layers:
        _write(target, layer, QuantizedWeight.of(weights.integers[layer], weights.params[layer]))
    activations: dict[str, QuantParams] = {}
    before = after = None
    kept = ""
    if settings.act_quant and activation_quantizers(target):
        learned = reconstruct_activations(target, examples, settings, title)
        activations = learned.params
        before, after, kept = learned.loss_before, learned.loss_after, learned.kept
    report = PartReport(
        name=part.name,
        layers=part.layers,
        iterations=settings.weight_iterations if bits else 0,
        loss_before=weights.loss_before,
        loss_after=weights.loss_after,
        kept=weights.kept,
        act_iterations=settings.act_iterations if activations else 0,
        act_loss_before=before,
        act_loss_after=after,
        act_kept=kept,
        seconds=time.perf_counter() - start,
    )
    return PartResult(report, weights.integers, weights.params, activations)


def _apply(
    student: QuantizedNetwork,
    target: GraphModule,
    result: PartResult,
    settings: Settings,
) -> None:
    """Put what was decided into the network (of which `target` is a part)."""
    for layer, integers in result.integers.items():
        student.set_weight(layer, QuantizedWeight.of(integers, result.weights[layer]))
    for name, quantizer in activation_quantizers(target).items():
        if settings.act_quant:
            quantizer.set(result.activations[name])
        quantizer.enabled = settings.act_quant


@torch.no_grad()
def _write(target: GraphModule, layer: str, weight: QuantizedWeight) -> None:
    module = target.get_submodule(layer)
    module.weight.copy_(weight.values())  # type: ignore[operator]


@torch.no_grad()
def _run(
    network: GraphModule,
    part: Part,
    values: dict[str, Tensor],
    cache: Cache,
    device: torch.device,
    batch_size: int = 128,
) -> dict[str, Tensor]:
    """The outputs of a part for all images."""
    inputs = [values[name] for name in part.inputs]
    kept: list[Tensor] = []
    for index in torch.arange(len(inputs[0])).split(batch_size):
        # Copies: a network may change what it is given in place.
        outputs = network(*[value[index.to(value.device)].to(device) for value in inputs])
        if not kept:
            kept = [cache.allocate((len(inputs[0]), *output.shape[1:])) for output in outputs]
        for room, output in zip(kept, outputs, strict=True):
            room[index.to(room.device)] = output.to(room.device)
    return dict(zip(part.outputs, kept, strict=True))


def _forget(remaining: Sequence[Part], *stores: dict[str, Tensor]) -> None:
    """Drop what no remaining part reads."""
    needed = {name for part in remaining for name in part.inputs}
    for store in stores:
        for name in set(store) - needed:
            del store[name]
