"""The same reconstruction, with the networks run anew for every block: what one pass saves.

BRECQ's own code goes about it so: for every block, once for its weights and once for its activation
step sizes, all images go through the quantized network up to the block (its inputs) and through the
float network up to its end (its targets).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule

from ompq.bitconfig import Assignment
from ompq.graph import NetworkGraph, Part, extract, parts_of
from ompq.quantized import QuantizedWeight, prepare
from ompq.quantizers import activation_quantizers
from PTQ.reconstruct import Examples, reconstruct_activations, reconstruct_weights
from PTQ.settings import Settings

_FORWARD_BATCH = 128


@torch.no_grad()
def handed_out(
    module: GraphModule, parts: tuple[Part, ...], outputs: tuple[str, ...], images: Tensor
) -> list[Tensor]:
    """What a network gives at `outputs`, run from the images through `parts`."""
    if not parts:
        return [images]
    entry = parts[0].inputs[0]
    nodes = tuple(node for part in parts for node in part.nodes)
    until = extract(module, Part(nodes, (entry,), outputs, ()))
    pieces = [until(piece.clone()) for piece in images.split(_FORWARD_BATCH)]
    return [torch.cat(values) for values in zip(*pieces, strict=True)]


def quantize_rerunning(
    graph: NetworkGraph, assignment: Assignment, images: Tensor, settings: Settings
) -> GraphModule:
    """What `PTQ.sweep.quantize_network` does, without any value kept from one block to the next.

    Args:
        graph: the float network, on the device to compute on.
        assignment: the widths of its groups.
        images: n × channels × height × width, normalised, on the same device.
        settings: as there; only for `--loss mse`.
    """
    teacher = prepare(graph, assignment)
    student = teacher.copy()
    parts = parts_of(teacher.graph, settings.granularity)
    widths = assignment.layer_bits()

    def examples(number: int) -> Examples:
        part = parts[number]
        inputs = handed_out(student.module, parts[:number], part.inputs, images)
        targets = handed_out(teacher.module, parts[: number + 1], part.outputs, images)
        unweighted = [None] * len(targets)
        return Examples(inputs, inputs, targets, unweighted, images.device)

    for number, part in enumerate(parts):
        target = extract(student.module, part)
        bits = {layer: widths[layer] for layer in part.layers if layer not in student.weights}
        weights = reconstruct_weights(target, examples(number), bits, settings, part.name)
        for layer, integers in weights.integers.items():
            student.set_weight(layer, QuantizedWeight.of(integers, weights.params[layer]))
        if activation_quantizers(target):
            reconstruct_activations(target, examples(number), settings, part.name)
    return student.module
