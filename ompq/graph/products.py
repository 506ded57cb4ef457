"""Products of two values of a network, such as those of attention, and what they cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod

from torch.fx import GraphModule, Node

from ompq.graph.arguments import read_arguments
from ompq.graph.operations import find_values, operation, tensor_shape

_MATRIX_PRODUCTS = frozenset("matmul bmm mm".split())


def find_product_ops(traced: GraphModule) -> dict[str, int]:
    """Find all products of matrices that both depend on the image, and count their operations.

    A product counts as a linear layer without bias: two operations per product of two numbers.

    Args:
        traced: Traced network with recorded shapes of one image.

    Returns:
        Node of a product → its operations for one image; in execution order.
    """
    counts = {node.name: 2 * _count_products(node, traced) for node in traced.graph.nodes}
    return {name: ops for name, ops in counts.items() if ops}


def find_probabilities(
    traced: GraphModule, products: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Find, for every product of two values, which of them are shares of one, as of a softmax.

    Args:
        traced: Traced network with recorded shapes of one image.
        products: Nodes of the products.

    Returns:
        Node of a product → nodes of such values that it reads, at most one.
    """
    found = {}
    for node in traced.graph.nodes:
        if node.name in products:
            values = find_values(node)
            shares = [value.name for value in values if value.meta.get("sums_to_one")]
            found[node.name] = tuple(shares[:1])
    return found


def find_product_layers(
    traced: GraphModule, products: Collection[str], layers: Mapping[str, str]
) -> dict[str, str]:
    """Find, for every product of two values, the first layer that its result reaches.

    The widths of what that layer reads are those of what the product reads.

    Args:
        traced: Traced network.
        products: Nodes of the products.
        layers: Node that calls a layer → its name, in execution order.

    Returns:
        Node of a product → name of the layer; the last layer where none follows.
    """
    ahead: dict[Node, str | None] = {}
    for node in reversed(traced.graph.nodes):
        # Users come later, so the one that is first in execution order is found among theirs.
        reached = [layers[user.name] if user.name in layers else ahead[user] for user in node.users]
        found = {name for name in reached if name is not None}
        ahead[node] = next((name for name in layers.values() if name in found), None)
    *_, last = layers.values()
    return {node.name: ahead[node] or last for node in traced.graph.nodes if node.name in products}


def _count_products(node: Node, traced: GraphModule) -> int:
    """Count the products of two numbers that a node computes; 0 where it computes anything else."""
    values = find_values(node)
    shape = tensor_shape(node)
    if not node.op.startswith("call_") or len(values) != 2 or shape is None:
        return 0
    name, arguments = operation(node, traced), read_arguments(node, traced)
    if name in _MATRIX_PRODUCTS:
        first = tensor_shape(values[0])
        return prod(shape) * first[-1] if first else 0
    equation = arguments.get("input")
    if name == "einsum" and isinstance(equation, str):
        return _count_einsum(equation, [tensor_shape(value) or () for value in values])
    return 0


def _count_einsum(equation: str, shapes: list[tuple[int, ...]]) -> int:
    """Count the products of a sum in Einstein's notation: one for each place along all letters.

    >>> _count_einsum("bij,bkj->bik", [(1, 5, 7), (1, 4, 7)])
    140
    """
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=False):
        # Dimensions behind three dots are counted from the other side.
        before, _, after = term.partition("...")
        sizes |= dict(zip(before, shape, strict=False))
        sizes |= dict(zip(reversed(after), reversed(shape), strict=False))
        between = shape[len(before) : len(shape) - len(after)] if "..." in term else ()
        sizes["..."] = max(sizes.get("...", 1), prod(between))
    return prod(sizes.values())
