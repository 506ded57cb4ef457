"""Quantization of a whole network, block after block, in one pass of the calibration images.

The blocks are reconstructed in execution order (BRECQ, arXiv:2102.05426). Every image goes once
through the float network and once through the quantized one: a block's outputs are kept until the
blocks that read them are done. A block learns from what the quantized network before it hands it,
and is to give what the float network gives.
"""

from __future__ import annotations

import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from ompq.assignment import Assignment, check_assignment
from ompq.data import collect_images
from ompq.equalisation import equalise_layers
from ompq.errors import OmpqError
from ompq.graph import (
    NetworkGraph,
    Subgraph,
    extract_subgraph,
    fold_batch_norm,
    split_into_subgraphs,
    trace_for,
)
from ompq.quantized import QuantizedNetwork, QuantizedWeight, simulate
from ompq.quantizers import QuantParams, activation_quantizers
from ompq.runtime import say
from PTQ.activation_cache import ActivationCache
from PTQ.biases import CorrectedBiases, correct_biases, find_own_biases
from PTQ.block_result import BlockReport, BlockResult
from PTQ.equalise import equalise_norms
from PTQ.examples import Examples
from PTQ.fisher import measure_output_importances
from PTQ.integers import finish_integers, prepare_integers
from PTQ.reconstruct import (
    reconstruct_activations,
    reconstruct_weights,
    round_block,
)
from PTQ.resume import FinishedBlocks
from PTQ.settings import Settings
from PTQ.tuning import TuningReport, tune_steps
from PTQ.variation import add_copies, can_vary

MINIMUM_IMAGES = 2
_FORWARD_BATCH = 128


class Reports(list[BlockReport]):
    """The reports of all blocks, in execution order.

    Attributes:
        tuning: Report of the tuning that followed them.
    """

    tuning: TuningReport


def round_to_nearest(
    graph: NetworkGraph, assignment: Assignment, settings: Settings
) -> QuantizedNetwork:
    """Round the weights of a network to nearest, with activations in float.

    Args:
        graph: Float network.
        assignment: Widths of the network's groups.
        settings: Settings of the reconstruction; `per_channel` and `symmetric` count here.
    """
    network = simulate(fold_batch_norm(graph), ())
    bits = assignment.layer_bits()
    with torch.no_grad():
        nearest = round_block(network.module, bits, settings)
    for layer in bits:
        network.set_weight(
            layer, QuantizedWeight.of(nearest.integers[layer], nearest.params[layer])
        )
    return network


def quantize_network(
    network: nn.Module | NetworkGraph,
    assignment: Assignment,
    images: Tensor | Iterable[Tensor | Sequence[Tensor]],
    settings: Settings | None = None,
    *,
    cache: ActivationCache | None = None,
    finished: FinishedBlocks | None = None,
    say: Callable[[str], None] = say,
) -> tuple[QuantizedNetwork, Reports]:
    """Quantize a network by reconstructing its blocks in order (BRECQ, arXiv:2102.05426).

    At the end scales and biases of all blocks are tuned together.

    Args:
        network: Float network on the device to compute on, a module or its traced graph; it is
            copied, never changed. A module is traced for images of the calibration images' size.
        assignment: Widths of the network's groups.
        images: Calibration images, n × channels × height × width, normalised, n ≥ 2; or batches of
            them, as a `DataLoader` yields them (its labels are not looked at).
        settings: Settings of the reconstruction; None for the defaults.
        cache: Source of room for the values between blocks; None for the place that
            `settings.cache_device` names, with files in the system's temporary folder.
        finished: Blocks that an earlier run finished, which takes up those of this run as well;
            None to remember nothing.
        say: Function that is told what a user should know; it prints by default.

    Returns:
        The quantized network and one report per block, with that of the tuning. If
        `settings.act_quant` is set, its activation quantizers are enabled, and its `integers` are
        what is deployed.

    Raises:
        OmpqError: Too few images, NaN in them, a network that cannot be traced, or no room for the
            values between blocks.
    """
    images = collect_images(images)
    if len(images) < MINIMUM_IMAGES:
        raise OmpqError(f"reconstruction needs {MINIMUM_IMAGES} images or more, not {len(images)}")
    settings = settings or Settings()
    graph = trace_for(network, images)
    check_assignment(assignment, graph)
    folded = fold_batch_norm(graph)
    prepared = None
    if settings.act_quant:
        widths = assignment.layer_bits(), assignment.layer_act_bits()
        if settings.equalise_norms:
            equalise_norms(folded, *widths, images, say)
        if settings.equalise_layers and settings.per_channel:
            equalise_layers(folded, *widths, images, say)
        prepared = prepare_integers(folded, assignment, images, settings, say)
    teacher = simulate(folded, () if prepared is None else prepared.sites)
    student = teacher.copy()
    device = next(teacher.module.parameters()).device
    cache = cache or ActivationCache(settings.cache_device, device, Path(tempfile.gettempdir()))
    if settings.vary_images and not can_vary(teacher.module, images, settings.seed):
        say("images are not varied: of images that are shifted the network gives NaN or infinity")
        settings = replace(settings, vary_images=False, varied_copies=None)
    varied = images
    if settings.vary_images:
        generator = torch.Generator().manual_seed(settings.seed)
        varied = add_copies(images, settings.varied_copies, generator)
    blocks = split_into_subgraphs(teacher.graph, settings.granularity)
    bits = assignment.layer_bits()
    owners = student.graph.weight_owners()
    own_biases = find_own_biases(student.graph)
    entry = blocks[0].inputs[0]
    float_values = {entry: varied}
    quantized_values = {entry: varied}
    importances: dict[str, Tensor] = {}
    if settings.loss == "fisher_diag":
        importances = measure_output_importances(
            teacher.module, blocks, varied, cache, settings.seed
        )
    reports = Reports()
    say("loss of every block on the calibration images, rounded → learned:")
    for number, block in enumerate(blocks):
        source = extract_subgraph(teacher.module, block)
        target = extract_subgraph(student.module, block)
        float_values |= _run(source, block, float_values, cache, device)
        result = None if finished is None else finished.load(number)
        if result is None:
            job = _BlockJob(
                block=block,
                source=source,
                target=target,
                # What an earlier block called as well, or shares a weight with, was quantized
                # there.
                bits={
                    owners[name]: bits[name]
                    for name in block.layers
                    if owners[name] not in student.weights
                },
                examples=_select(block, quantized_values, float_values, importances, device),
                own_biases=own_biases.intersection(block.layers),
                title=f"{number + 1}/{len(blocks)} {block.name}",
            )
            # Seeded block by block, so that a resumed run draws what an uninterrupted one draws.
            torch.manual_seed(zlib.crc32(f"{settings.seed} {number}".encode()))
            result = _reconstruct(job, settings)
            if finished is not None:
                finished.save(number, result)
        _apply(result, student, target, settings)
        for layer in block.layers:
            student.round_bias(layer)
        say(f"{number + 1:>3}/{len(blocks)} {result.report.format_line()}")
        reports.append(result.report)
        quantized_values |= _run(target, block, quantized_values, cache, device)
        _drop_unread(blocks[number + 1 :], float_values, quantized_values)
    torch.manual_seed(settings.seed)
    reports.tuning = tune_steps(student, teacher.module, images, settings)
    if settings.tuning_steps:
        say(reports.tuning.format_line())
    if prepared is not None:
        finish_integers(prepared, student, images)
    return student, reports


@dataclass(frozen=True)
class _BlockJob:
    """A block that is to be reconstructed.

    `source` is its module in the float network, `target` in the quantized one; `bits` holds the
    widths of the layers whose weights it decides, `own_biases` the layers whose biases no other
    block has to do with.
    """

    block: Subgraph
    source: GraphModule
    target: GraphModule
    bits: dict[str, int]
    own_biases: set[str]
    examples: Examples
    title: str


def _select(
    block: Subgraph,
    quantized_values: dict[str, Tensor],
    float_values: dict[str, Tensor],
    importances: dict[str, Tensor],
    device: torch.device,
) -> Examples:
    """Select the inputs and targets of a block among the values that are kept."""
    return Examples(
        inputs=[quantized_values[name] for name in block.inputs],
        float_inputs=[float_values[name] for name in block.inputs],
        targets=[float_values[name] for name in block.outputs],
        importances=[importances.get(name) for name in block.outputs],
        device=device,
        input_layouts=[block.layouts[name] for name in block.inputs],
        target_layouts=[block.layouts[name] for name in block.outputs],
    )


def _reconstruct(job: _BlockJob, settings: Settings) -> BlockResult:
    """Decide the weights, then the activations of a block; its modules take the values over."""
    start = time.perf_counter()
    target, bits, examples = job.target, job.bits, job.examples
    for quantizer in activation_quantizers(target).values():
        quantizer.enabled = False
    weights = reconstruct_weights(target, examples, bits, settings, job.title)
    # The scales of activations are learned with the weights that will be there.
    for layer in bits:
        _write(target, layer, QuantizedWeight.of(weights.integers[layer], weights.params[layer]))
    activations: dict[str, QuantParams] = {}
    before = after = None
    kept = ""
    if settings.act_quant and activation_quantizers(target):
        learned = reconstruct_activations(target, examples, settings, job.title)
        activations = learned.params
        before, after, kept = learned.loss_before, learned.loss_after, learned.kept
    corrected = CorrectedBiases()
    if settings.correct_biases:
        power = 2.0 if after is None else settings.act_power
        corrected = correct_biases(job.source, target, job.own_biases, examples, power)
    report = BlockReport(
        name=job.block.name,
        layers=job.block.layers,
        iterations=settings.weight_iterations if bits else 0,
        loss_before=weights.loss_before,
        loss_after=weights.loss_after,
        kept=weights.kept,
        act_iterations=settings.act_iterations if activations else 0,
        act_loss_before=before,
        act_loss_after=after,
        act_kept=kept,
        seconds=time.perf_counter() - start,
        bias_loss_before=corrected.loss_before,
        bias_loss_after=corrected.loss_after,
    )
    return BlockResult(report, weights.integers, weights.params, activations, corrected.biases)


def _apply(
    result: BlockResult, student: QuantizedNetwork, target: GraphModule, settings: Settings
) -> None:
    """Put a block's result into the quantized network, of which `target` is that block."""
    owners = student.graph.weight_owners()
    for owner, integers in result.integers.items():
        for layer in (name for name, other in owners.items() if other == owner):
            student.set_weight(layer, QuantizedWeight.of(integers, result.weights[owner]))
    for name, quantizer in activation_quantizers(target).items():
        if settings.act_quant:
            quantizer.set(result.activations[name])
        quantizer.enabled = settings.act_quant
    with torch.no_grad():
        for layer, bias in result.biases.items():
            target.get_parameter(f"{layer}.bias").copy_(bias)


@torch.no_grad()
def _write(target: GraphModule, layer: str, weight: QuantizedWeight) -> None:
    module = target.get_submodule(layer)
    module.weight.copy_(weight.values())  # type: ignore[operator]


@torch.no_grad()
def _run(
    module: GraphModule,
    block: Subgraph,
    values: dict[str, Tensor],
    cache: ActivationCache,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return the outputs of a block for all images, images first, in room that the cache gives."""
    inputs = [values[name] for name in block.inputs]
    into = [block.layouts[name] for name in block.inputs]
    out_of = [block.layouts[name] for name in block.outputs]
    kept: list[Tensor] = []
    for index in torch.arange(len(inputs[0])).split(_FORWARD_BATCH):
        # Copies: a network may change what it is given in place.
        chosen = [value[index.to(value.device)].to(device) for value in inputs]
        given = module(*[layout.join(v) for layout, v in zip(into, chosen, strict=True)])
        outputs = [layout.split(v) for layout, v in zip(out_of, given, strict=True)]
        if not kept:
            kept = [cache.allocate((len(inputs[0]), *output.shape[1:])) for output in outputs]
        for room, output in zip(kept, outputs, strict=True):
            room[index.to(room.device)] = output.to(room.device)
    return dict(zip(block.outputs, kept, strict=True))


def _drop_unread(remaining: Sequence[Subgraph], *stores: dict[str, Tensor]) -> None:
    """Drop the values that no remaining block reads, and with them their room."""
    needed = {name for block in remaining for name in block.inputs}
    for store in stores:
        for name in set(store) - needed:
            del store[name]
