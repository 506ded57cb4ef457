"""Products of two values of a network, such as those of attention, and what they cost."""

from __future__ import annotations

from math import prod

from torch.fx import GraphModule, Node

from ompq.graph.arguments import read_arguments
from ompq.graph.operations import carries_values, operation, tensor_shape

_MATRIX_PRODUCTS = frozenset("matmul bmm mm".split())


def count_product_ops(traced: GraphModule) -> int:
    """Count the operations of all products of matrices that both depend on the image.

    A product counts as a linear layer without bias: two operations per product of two numbers.

    Args:
        traced: Traced network with recorded shapes of one image.
    """
    return sum(2 * _count_products(node, traced) for node in traced.graph.nodes)


def _count_products(node: Node, traced: GraphModule) -> int:
    """Count the products of two numbers that a node computes; 0 where it computes anything else."""
    values = [source for source in node.all_input_nodes if carries_values(source)]
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
