"""What the conversion sets into a traced network: where it stands, and what for."""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule, Node

from ompq.integer.operations import IntegerOperation, QuantizedConstant
from ompq.integer.requantization import Dequantizer, OutputRounding, Requantizer

# Paths of what is set into the traced network: requantizers that layers read; sums,
# concatenations, and requantizers that averages are taken of. They begin the names of tensors in
# QAT's checkpoints and in `quantized.safetensors`, and so must stay as they are.
REQUANTIZER_PATH = "requantizers"
COMBINATION_PATH = "joints"
# Requantizers of values that others than layers read as well.
VALUE_PATH = "values"
# Operations between layers that have an integer form of their own; what they compute in float is in
# them.
OPERATION_PATH = "operations"
# These hold no tensors.
CONSTANT_PATH = "constants"
OUTPUT_PATH = "output_rounding"
CLIP_PATH = "clip_rounding"
CAST_PATH = "casts"


# What follows the name of a node that modules have a method by.
_SUFFIX = "__"


def make_path(kind: str, name: str) -> str:
    """Make the path of what is set in for a node.

    Args:
        kind: One of the paths above.
        name: Name of the node before the conversion.

    >>> make_path("values", "add"), make_path("values", "half")
    ('values.add', 'values.half__')
    """
    return f"{kind}.{name}{_SUFFIX if hasattr(nn.Module, name) else ''}"


def find_original(node: Node, module: GraphModule) -> str:
    """Return the name of the node, in the network before the conversion, that a node stands for.

    Args:
        node: Node of the converted network.
        module: Converted network.
    """
    if not is_inserted(node, module):
        return node.name
    if node.target == OUTPUT_PATH:
        return find_original(node.all_input_nodes[0], module)
    return str(node.target).partition(".")[2].removesuffix(_SUFFIX)


def is_inserted(node: Node, module: GraphModule) -> bool:
    """Tell whether the conversion has set what a node calls into the network, layers aside."""
    return node.op == "call_module" and isinstance(
        module.get_submodule(str(node.target)),
        Requantizer | IntegerOperation | QuantizedConstant | OutputRounding | Dequantizer,
    )
