"""Sums of products in Einstein's notation, written as products of matrices where they are those."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

import torch
from torch.fx import GraphModule, Node

from ompq.graph.operations import operation, tensor_shape


def open_einsums(traced: GraphModule) -> bool:
    """Write `einsum` of two values as a product of matrices, between permutations, in place.

    Runtimes multiply matrices of 8 bits, and compute this notation in float.

    Args:
        traced: Traced network with recorded shapes; those of new nodes are not recorded.

    Returns:
        Whether the network had any.
    """
    found = [
        node
        for node in traced.graph.nodes
        if node.op == "call_function" and operation(node, traced) == "einsum"
    ]
    opened = [node for node in found if _open(traced, node)]
    if opened:
        traced.recompile()
    return bool(opened)


def _open(traced: GraphModule, node: Node) -> bool:
    """Make a node a product of matrices, with what arranges values around it, if it is one."""
    equation, *operands = node.args
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = list(operands[0])
    values = [value for value in operands if isinstance(value, Node)]
    shapes = [shape for shape in map(tensor_shape, values) if shape is not None]
    if not isinstance(equation, str) or not len(operands) == len(values) == len(shapes) == 2:
        return False
    terms = read_equation(equation, [len(shape) for shape in shapes])
    if terms is None:
        return False
    first, second, result = terms
    batch = [letter for letter in result if letter in first and letter in second]
    rows = [letter for letter in first if letter in result and letter not in second]
    columns = [letter for letter in second if letter in result and letter not in first]
    summed = [letter for letter in first if letter in second and letter not in result]
    whole = len(batch + rows + summed) == len(first), len(batch + columns + summed) == len(second)
    if not all(whole) or not len(rows) == len(columns) == len(summed) == 1:
        return False
    with traced.graph.inserting_before(node):
        left = _permute(traced, values[0], first, [*batch, *rows, *summed])
        right = _permute(traced, values[1], second, [*batch, *summed, *columns])
    made = [new for new in (left, right) if new not in values]
    node.target, node.args, node.kwargs = torch.matmul, (left, right), {}
    with traced.graph.inserting_after(node):
        arranged = _permute(traced, node, [*batch, *rows, *columns], list(result))
    if arranged is not node:
        made.append(arranged)
        node.replace_all_uses_with(arranged, delete_user_cb=lambda user: user is not arranged)
    for new in made:
        new.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
    return True


def _permute(traced: GraphModule, value: Node, given: Sequence[str], asked: Sequence[str]) -> Node:
    """Arrange a value's dimensions, if they are not in order."""
    order = tuple(given.index(letter) for letter in asked)
    if order == tuple(range(len(order))):
        return value
    return traced.graph.call_method("permute", (value, *order))


def read_equation(equation: str, ranks: Sequence[int]) -> tuple[str, str, str] | None:
    """Read the letters of the dimensions of two values and of their product.

    Args:
        equation: The notation; dots get capital letters.
        ranks: Numbers of dimensions of both values.

    Returns:
        Letters of both values and of the result; None for other equations.

    >>> read_equation("...ic,...jc->...ij", [4, 4])
    ('ABic', 'ABjc', 'ABij')
    """
    given, arrow, result = equation.replace(" ", "").partition("->")
    terms = given.split(",")
    if not arrow or len(terms) != 2 or any(letter.isupper() for letter in equation):
        return None
    named = [len(term.replace("...", "")) for term in terms]
    hidden = [
        rank - count if "..." in term else 0
        for term, rank, count in zip(terms, ranks, named, strict=True)
    ]
    # Dots that stand for different numbers of dimensions broadcast.
    if len(set(hidden)) > 1 or not 0 <= hidden[0] <= len(ascii_uppercase):
        return None
    letters = ascii_uppercase[: hidden[0]]
    first, second, found = (term.replace("...", letters) for term in (*terms, result))
    distinct = all(len(set(term)) == len(term) for term in (first, second, found))
    return (first, second, found) if distinct else None
