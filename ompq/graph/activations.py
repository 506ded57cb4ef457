"""The activations to quantize: the values that layers read."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from ompq.graph.arguments import read_arguments
from ompq.graph.network import NetworkGraph
from ompq.graph.operations import (
    ARITHMETIC,
    BATCH_NORMS,
    IDENTITIES,
    LAYOUTS,
    MAX_POOLS,
    PRODUCTS,
    QUOTIENTS,
    carries_values,
    operation,
)

# These hand on values of their input, or zeros: what is quantized before them is so behind them.
_SELECTING = LAYOUTS | IDENTITIES | MAX_POOLS
# These make images of images: pieces, arrangements, other sizes, other units.
_AFFINE = (
    ARITHMETIC
    | LAYOUTS
    | IDENTITIES
    | BATCH_NORMS
    | frozenset(
        "getitem cat concat concatenate stack chunk split unbind pad zeropad2d flip roll narrow "
        "select movedim swapaxes unfold pixel_unshuffle pixelunshuffle interpolate set_item".split()
    )
    # Of a network that quantizes its images.
    | {"ActivationQuantizer"}
)


def find_activation_sites(graph: NetworkGraph) -> dict[str, tuple[str, ...]]:
    """Find the nodes whose values are to be quantized, and the layers that read them.

    Every layer reads a quantized value: the network's input, or what was computed last before the
    layer, reshaping and max pooling aside. Other readers of that value (a residual add) read it
    quantized too. The network's output is read by no layer and stays as it is.

    Args:
        graph: Traced network.

    Returns:
        The layers that read each value, by the name of its node; nodes in execution order.
    """
    nodes = {node.name: node for node in graph.module.graph.nodes}
    calls = [(layer.name, nodes[name]) for layer in graph.layers.values() for name in layer.nodes]
    return _collect_readers(graph, [(name, call.all_input_nodes[0]) for name, call in calls])


def find_product_sites(graph: NetworkGraph) -> dict[str, tuple[str, ...]]:
    """Find the nodes whose values products of two values read, and the layers that these lead to.

    Probabilities are not among them: their width does not follow.

    Args:
        graph: Traced network.

    Returns:
        First layers of the groups that count the products that read each value, by the name of its
        node; nodes in execution order.
    """
    nodes = {node.name: node for node in graph.module.graph.nodes}
    products = [(group.name, nodes[name]) for group in graph.groups for name in group.products]
    shares = {name for group in graph.groups for name in group.probabilities}
    reads = [(name, value) for name, product in products for value in product.all_input_nodes]
    reads = [(name, value) for name, value in reads if value.name not in shares]
    return _collect_readers(
        graph, [(name, value) for name, value in reads if carries_values(value)]
    )


def _collect_readers(
    graph: NetworkGraph, reads: list[tuple[str, Node]]
) -> dict[str, tuple[str, ...]]:
    """Collect, for every node that computed what is read, who reads it.

    Args:
        graph: Traced network.
        reads: Names of readers, and the node that each reads.
    """
    readers: dict[str, dict[str, None]] = {}
    for reader, value in reads:
        source = _find_producer(value, graph.module)
        if source is not None:
            readers.setdefault(source.name, {})[reader] = None
    names = [node.name for node in graph.module.graph.nodes]
    return {name: tuple(readers[name]) for name in names if name in readers}


def _find_producer(source: Node, module: GraphModule) -> Node | None:
    """Find the node that computed what is read there; None where that is a parameter."""
    while source.op not in ("placeholder", "get_attr") and operation(source, module) in _SELECTING:
        source = source.all_input_nodes[0]
    return None if source.op == "get_attr" else source


def find_image_maps(traced: GraphModule) -> set[Node]:
    """Find the images, and the nodes whose values are affine maps of them (normalised images).

    Quantizing these to less than the pixels' 8 bits would cost more than any layer's activations.

    Args:
        traced: Traced network with recorded shapes.
    """
    behind: set[Node] = set()
    maps: set[Node] = set()
    for node in traced.graph.nodes:
        sources = [source for source in node.all_input_nodes if source in behind]
        if node.op == "placeholder":
            behind.add(node)
            maps.add(node)
        elif sources and carries_values(node):
            behind.add(node)
            if all(source in maps for source in sources) and _is_affine(node, sources, traced):
                maps.add(node)
    return maps


def _is_affine(node: Node, sources: list[Node], traced: GraphModule) -> bool:
    """Tell whether a node computes an affine map of those of its inputs that depend on images."""
    name = operation(node, traced)
    if node.op == "output" or name not in _AFFINE:
        return False
    if name in PRODUCTS | QUOTIENTS:
        given = read_arguments(node, traced)
        factors = [given.get("input"), given.get("other")]
        # An image in the divisor is not affine, nor is the product of an image with itself.
        is_dividend = name in PRODUCTS or factors[0] is sources[0]
        return len(sources) == 1 and is_dividend and factors.count(sources[0]) == 1
    return True
