"""Changes in place, written as new values: a graph then tells what is computed from what."""

from __future__ import annotations

import operator
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import functional

from ompq.graph.operations import operation, tensor_shape
from ompq.graph.recording import set_item
from ompq.graph.shapes import copy_shape

# torch.fx writes `x += y` as operator.iadd, whose name does not end with an underscore.
_OPERATORS = {
    "iadd": operator.add,
    "imul": operator.mul,
    "isub": operator.sub,
    "itruediv": operator.truediv,
}


def follow_in_place_changes(traced: GraphModule) -> None:
    """Let what changes a value in place give a new one, which all later readers read.

    A change of a part, `x[:, :4].relu_()`, is one of the whole. Changes through other views, whose
    values are read elsewhere, are lost by this; the check against the network itself finds them.
    What was in place is noted in `meta`, for it needs no memory of its own.

    Args:
        traced: Traced network with recorded shapes; it is changed in place.
    """
    position = {node: number for number, node in enumerate(traced.graph.nodes)}
    for node in list(traced.graph.nodes):
        if not node.all_input_nodes or not _works_in_place(node, traced):
            continue
        changed, value = _find_changed(node), node
        node.meta["in_place"] = changed is node.all_input_nodes[0]
        _hand_on(changed, value, position)
        while _is_part(changed):
            whole, index = changed.args
            assert isinstance(whole, Node)
            with traced.graph.inserting_after(value):
                value = traced.graph.call_function(set_item, (whole, index, value))
            position[value] = position[node]
            copy_shape(value, whole)
            value.meta["in_place"] = True
            _hand_on(whole, value, position)
            changed = whole
        _compute_anew(node, traced)
    traced.graph.lint()
    traced.recompile()


def _hand_on(changed: Node, value: Node, position: dict[Node, int]) -> None:
    """Let later readers read the new value; earlier ones, and the change itself, read the old."""
    changed.replace_all_uses_with(
        value, delete_user_cb=lambda user: position[user] > position[value]
    )


def _find_changed(node: Node) -> Node:
    """Find the value that an operation writes its result into: `out`, or its first input."""
    out = node.kwargs.get("out")
    return out if isinstance(out, Node) else node.all_input_nodes[0]


def _is_part(node: Node) -> bool:
    """Tell whether a value is a part of another one's memory, by numbers and slices."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return False
    whole, index = node.args
    if not isinstance(whole, Node) or tensor_shape(whole) is None:
        return False
    steps = index if isinstance(index, tuple) else (index,)
    return all(step is None or step is ... or isinstance(step, int | slice) for step in steps)


def _works_in_place(node: Node, traced: GraphModule) -> bool:
    """Tell whether an operation writes its result into a value that it is given."""
    if tensor_shape(_find_changed(node)) is None:
        return False
    if isinstance(node.kwargs.get("out"), Node):
        return True
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(str(node.target)), "inplace", False))
    if node.op not in ("call_method", "call_function"):
        return False
    name = str(node.target if node.op == "call_method" else getattr(node.target, "__name__", ""))
    by_name = name.endswith("_") and not name.endswith("__")
    by_operator = operation(node, traced) in _OPERATORS
    return by_name or by_operator or bool(_find_inplace(node)[1])


def _find_inplace(node: Node) -> tuple[int, Any]:
    """Return the place among a function's arguments of `inplace`, and what is given for it.

    The place is −1 where it is given by its name, or not at all.
    """
    if "inplace" in node.kwargs:
        return -1, node.kwargs["inplace"]
    if not callable(node.target) or node.target.__module__ != functional.__name__:
        return -1, False
    names = list(signature(node.target).parameters)
    place = names.index("inplace") if "inplace" in names else len(node.args)
    return (place, node.args[place]) if place < len(node.args) else (-1, False)


def _compute_anew(node: Node, traced: GraphModule) -> None:
    """Let an operation give a new value; one that is known in place alone stays as it is."""
    if isinstance(node.kwargs.get("out"), Node):
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "out"}
        return
    if node.op == "call_method" and node.target in ("zero_", "fill_", "copy_"):
        given = 0.0 if node.target == "zero_" else [*node.args, *node.kwargs.values()][1]
        node.op, node.target = "call_function", set_item
        node.args, node.kwargs = (node.args[0], slice(None), given), {}
        return
    if node.op == "call_module":
        traced.get_submodule(str(node.target)).inplace = False  # type: ignore[assignment]
        return
    name = operation(node, traced)
    place, asked = _find_inplace(node)
    if asked:
        if place < 0:
            node.kwargs = {**node.kwargs, "inplace": False}
        else:
            node.args = (*node.args[:place], False, *node.args[place + 1 :])
    elif name in _OPERATORS:
        node.op, node.target = "call_function", _OPERATORS[name]
    elif node.op == "call_method" and callable(getattr(Tensor, str(node.target)[:-1], None)):
        node.target = str(node.target)[:-1]
    elif node.op == "call_function":
        plain = getattr(node.target, "__name__", "")[:-1]
        found = getattr(torch, plain, None) or getattr(functional, plain, None)
        node.target = found or node.target
