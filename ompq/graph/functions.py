"""Functions of a traced network written as what they compute: layers, sums, changes of shape."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.functional import avg_pool2d

from ompq.graph.arguments import read_arguments
from ompq.graph.operations import (
    DIFFERENCES,
    carries_values,
    operation,
    runs_library_code,
    tensor_shape,
)
from ompq.graph.shapes import FILLED, copy_shape

# Methods that take another tensor's shape, and those that take sizes.
_SHAPED_AS = {"expand_as": "expand", "reshape_as": "reshape", "view_as": "view"}


def call_layers(traced: GraphModule, root: nn.Module) -> None:
    """Call a layer instead of the function that is given its weight, in place.

    A bias that is not the layer's own is added behind it.

    Args:
        traced: Traced network with recorded shapes.
        root: Network that was traced, with all of its modules.
    """
    for node in list(traced.graph.nodes):
        if node.op != "call_function" or operation(node, traced) not in ("linear", "conv2d"):
            continue
        given = read_arguments(node, traced)
        source, bias, path = given.get("input"), given.get("bias"), _find_owner(given)
        layer = root.get_submodule(path) if path else None
        if not isinstance(layer, nn.Conv2d | nn.Linear) or not runs_library_code(layer):
            continue
        shape = tensor_shape(source) if isinstance(source, Node) else None
        if shape is None or not _has_geometry(layer, given):
            continue
        own = isinstance(bias, Node) and bias.op == "get_attr" and bias.target == f"{path}.bias"
        adds = bias is not None and not own
        if adds and not isinstance(layer, nn.Linear):
            continue
        read = node.all_input_nodes[1:]
        if layer.bias is not None and not own:
            # Others may read the layer's own bias where it is.
            layer, path = _leave_out_bias(layer), f"{path}.without_bias"
        traced.set_submodule(path, layer)
        node.op, node.target, node.args, node.kwargs = "call_module", path, (source,), {}
        if adds and isinstance(bias, Node):
            _add_behind(node, bias)
        for parameter in read:
            if not parameter.users:
                traced.graph.erase_node(parameter)
    traced.recompile()


def _find_owner(given: Mapping[str, Any]) -> str:
    """Find the module whose weight a function is given."""
    weight = given.get("weight")
    if not isinstance(weight, Node) or weight.op != "get_attr":
        return ""
    path, _, name = str(weight.target).rpartition(".")
    return path if name == "weight" else ""


def _leave_out_bias(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Return a layer of the same weight without a bias."""
    plain = copy.copy(layer)
    plain._parameters = {**layer._parameters, "bias": None}
    return plain


def _add_behind(node: Node, added: Node) -> None:
    """Add a value to what a node gives, for all who read it."""
    with node.graph.inserting_after(node):
        total = node.graph.call_function(torch.add, (node, added))
    copy_shape(total, node)
    node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)


def _has_geometry(layer: nn.Conv2d | nn.Linear, given: Mapping[str, Any]) -> bool:
    """Tell whether a function convolves as a layer does."""
    if isinstance(layer, nn.Linear):
        return True
    if layer.padding_mode != "zeros" or layer.groups != given.get("groups", 1):
        return False
    usual = {"stride": 1, "padding": 0, "dilation": 1}
    return all(_pair(given.get(k, v)) == _pair(getattr(layer, k)) for k, v in usual.items())


def _pair(value: Any) -> Any:
    """Write one number for both dimensions as two."""
    return (
        (value, value)
        if isinstance(value, int)
        else value
        if isinstance(value, str)
        else (tuple(value))
    )


def fix_types(traced: GraphModule) -> None:
    """Give new tensors, made like another one, the type that they have in float, in place."""
    for node in traced.graph.nodes:
        kind = node.meta.get("dtype")
        if operation(node, traced) in FILLED and kind is not None and "dtype" not in node.kwargs:
            node.kwargs = {**node.kwargs, "dtype": kind}
    traced.recompile()


def read_sizes_alone(traced: GraphModule) -> None:
    """Let what takes another tensor's shape (`expand_as`) read its size, not its values, in place.

    Args:
        traced: Traced network with recorded shapes.
    """
    for node in list(traced.graph.nodes):
        name = _SHAPED_AS.get(str(node.target)) if node.op == "call_method" else None
        given = [*node.args, *node.kwargs.values()]
        if name is None or len(given) != 2 or not all(isinstance(each, Node) for each in given):
            continue
        with traced.graph.inserting_before(node):
            size = traced.graph.call_method("size", (given[1],))
        node.target, node.args, node.kwargs = name, (given[0], size), {}
    traced.recompile()


def add_opposites(traced: GraphModule) -> None:
    """Write a difference of two values as the sum of one and the other's opposite, in place.

    Args:
        traced: Traced network with recorded shapes, whose changes in place are followed.
    """
    for node in list(traced.graph.nodes):
        known = node.op in ("call_function", "call_method")
        if not known or operation(node, traced) not in DIFFERENCES:
            continue
        given = read_arguments(node, traced)
        first, second = given.get("input"), given.get("other")
        if not isinstance(first, Node) or not isinstance(second, Node):
            continue
        if not carries_values(first) or not carries_values(second) or given.get("alpha", 1) != 1:
            continue
        with traced.graph.inserting_before(node):
            opposite = traced.graph.call_function(torch.neg, (second,))
        copy_shape(opposite, second)
        node.op, node.target = "call_function", torch.add
        node.args, node.kwargs = (first, opposite), {}
    traced.recompile()


def count_padding(traced: GraphModule) -> bool:
    """Write averages that leave padding out as averages over all of it, times numbers, in place.

    Integers have one divisor for all places; what differs at the borders is multiplied in behind.

    Args:
        traced: Traced network with recorded shapes; those of the numbers are not recorded.

    Returns:
        Whether the network had any.
    """
    found = False
    for node in list(traced.graph.nodes):
        if operation(node, traced) not in ("avg_pool2d", "avgpool2d"):
            continue
        given = read_arguments(node, traced)
        source, windows = given.get("input"), [given.get("kernel_size"), given.get("stride")]
        padding, shape = given.get("padding", 0), tensor_shape(node.all_input_nodes[0])
        counts = given.get("count_include_pad", True) or padding in (0, (0, 0))
        if counts or given.get("ceil_mode") or given.get("divisor_override") or shape is None:
            continue
        arguments = (*windows, padding)
        device = next(traced.parameters()).device
        ones = torch.ones(*[1] * (len(shape) - 2), *shape[-2:], device=device)
        shares = avg_pool2d(ones, *arguments)
        path = f"{node.name}_borders"
        traced.register_buffer(path, 1 / shares, persistent=False)
        node.op, node.target = "call_function", avg_pool2d
        node.args, node.kwargs = (source, *arguments), {}
        _multiply_behind(node, path)
        found = True
    if found:
        traced.recompile()
    return found


def _multiply_behind(node: Node, path: str) -> None:
    """Let the readers of a node read it multiplied by a buffer."""
    graph = node.graph
    with graph.inserting_after(node):
        factor = graph.get_attr(path)
    with graph.inserting_after(factor):
        product = graph.call_function(torch.mul, (node, factor))
    copy_shape(product, node)
    product.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
    node.replace_all_uses_with(product, delete_user_cb=lambda user: user is not product)
