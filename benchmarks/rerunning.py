"""Block reconstruction that runs the networks anew for every block: what one pass saves.

BRECQ's own code goes about it so: for every block, once for its weights and once for its activation
step sizes, all images go through the quantized network up to the block (its inputs) and through the
float network up to its end (its targets).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule

from ompq.assignment import Assignment
from ompq.graph import (
    NetworkGraph,
    Subgraph,
    extract_subgraph,
    fold_batch_norm,
    split_into_subgraphs,
)
from ompq.quantized import QuantizedWeight, simulate
from ompq.quantizers import activation_quantizers
from ompq.runtime import say
from PTQ.examples import Examples
from PTQ.integers import prepare_integers
from PTQ.reconstruct import reconstruct_activations, reconstruct_weights
from PTQ.settings import Settings

_FORWARD_BATCH = 128


@torch.no_grad()
def compute_values(
    module: GraphModule, blocks: tuple[Subgraph, ...], outputs: tuple[str, ...], images: Tensor
) -> list[Tensor]:
    """Compute the values at some outputs, from the images through the first blocks.

    Args:
        module: Network.
        blocks: First blocks of the network, in order; without any, the images are returned.
        outputs: Names of the nodes whose values are returned.
        images: n × channels × height × width, on the device of the network.

    Returns:
        One tensor n × … per output.
    """
    if not blocks:
        return [images]
    entry = blocks[0].inputs[0]
    nodes = tuple(node for block in blocks for node in block.nodes)
    until = extract_subgraph(module, Subgraph(nodes, (entry,), outputs, ()))
    # Copies: a network may change what it is given in place.
    pieces = [until(piece.clone()) for piece in images.split(_FORWARD_BATCH)]
    return [torch.cat(values) for values in zip(*pieces, strict=True)]


def quantize_rerunning(
    graph: NetworkGraph, assignment: Assignment, images: Tensor, settings: Settings
) -> GraphModule:
    """Quantize a network as `quantize_network` does, without keeping values between blocks.

    Args:
        graph: Float network, on the device to compute on.
        assignment: Widths of the network's groups.
        images: Calibration images, n × channels × height × width, normalised, on the network's
            device.
        settings: Settings of the reconstruction; their `loss` must be `mse`.

    Returns:
        The quantized network, with its activation quantizers enabled.
    """
    folded = fold_batch_norm(graph)
    prepared = prepare_integers(folded, assignment, images, settings, say)
    teacher = simulate(folded, prepared.sites)
    student = teacher.copy()
    blocks = split_into_subgraphs(teacher.graph, settings.granularity)
    widths = assignment.layer_bits()

    def make_examples(number: int) -> Examples:
        block = blocks[number]
        inputs = compute_values(student.module, blocks[:number], block.inputs, images)
        targets = compute_values(teacher.module, blocks[: number + 1], block.outputs, images)
        unweighted = [None] * len(targets)
        return Examples(inputs, inputs, targets, unweighted, images.device)

    for number, block in enumerate(blocks):
        target = extract_subgraph(student.module, block)
        bits = {layer: widths[layer] for layer in block.layers if layer not in student.weights}
        weights = reconstruct_weights(target, make_examples(number), bits, settings, block.name)
        for layer, integers in weights.integers.items():
            student.set_weight(layer, QuantizedWeight.of(integers, weights.params[layer]))
        if activation_quantizers(target):
            reconstruct_activations(target, make_examples(number), settings, block.name)
        for layer in block.layers:
            student.round_bias(layer)
    return student.module
