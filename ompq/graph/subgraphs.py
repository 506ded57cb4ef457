"""Subgraphs: consecutive nodes of a traced network, as a network of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import floordiv, mul

from torch.fx import Graph, GraphModule, Node

from ompq.graph.layout import ImageLayout
from ompq.graph.network import NetworkGraph
from ompq.graph.operations import carries_values, image_layout, tensor_shape

GRANULARITIES = ("block", "layer")


@dataclass(frozen=True)
class Subgraph:
    """Consecutive nodes of a network, the tensors that come in, and those that go out.

    Attributes:
        nodes: Names of the nodes, in execution order.
        inputs: Nodes outside whose tensors are read inside.
        outputs: Nodes inside whose tensors are read outside, or are the network's output.
        layers: Names of the layers that are called, in execution order.
        layouts: Place of the images in each of those tensors, by the name of its node.
    """

    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...]
    layouts: Mapping[str, ImageLayout] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        """Return the path that its layers have in common (`layer1.0`), else its first layer's.

        >>> Subgraph((), (), (), ("layer1.0.conv1", "layer1.0.conv2")).name
        'layer1.0'
        """
        if not self.layers:
            return self.outputs[-1]
        split = [layer.split(".") for layer in self.layers]
        shared = []
        for names in zip(*split, strict=False):
            if len(set(names)) > 1:
                break
            shared.append(names[0])
        return ".".join(shared) or self.layers[0]


def split_into_subgraphs(graph: NetworkGraph, granularity: str) -> tuple[Subgraph, ...]:
    """Split a network into subgraphs in execution order, every computed node in exactly one.

    Args:
        graph: Traced network.
        granularity: `block` for its blocks, which have one input and one output; `layer` for one
            subgraph per layer call, with what follows it up to the next (it may then have several
            inputs). Layer calls between which something else than tensors of images is handed on
            stay together.

    Raises:
        ValueError: `granularity` is neither.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity {granularity!r} is none of {', '.join(GRANULARITIES)}")
    if granularity == "block":
        cuts = [list(block.nodes) for block in graph.blocks]
    else:
        cuts = _cut_before_layers(graph)
    return tuple(make_subgraph(graph, nodes) for nodes in cuts)


def extract_subgraph(module: GraphModule, subgraph: Subgraph) -> GraphModule:
    """Extract the network that computes a subgraph's outputs (a tuple) from its inputs.

    Its modules are those of `module`, not copies. What is computed of parameters alone is computed
    anew. Sizes that were read off tensors outside of the subgraph are read off stand-ins of their
    shape (for as many images as the first input holds).

    Args:
        module: Traced network with recorded shapes.
        subgraph: Subgraph of that network.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    graph = Graph()
    copies: dict[Node, Node] = {}
    for name in subgraph.inputs:
        copies[nodes[name]] = graph.placeholder(name)
    entry = nodes[subgraph.inputs[0]]
    inside = set(subgraph.nodes)

    def copy_once(node: Node) -> Node:
        """Copy a node, and first all that it reads: parameters and sizes too, wherever they are."""
        if node in copies:
            return copies[node]
        if node.name not in inside and carries_values(node):
            copies[node] = _add_stand_in(graph, copies[entry], entry, node)
        else:
            copies[node] = graph.node_copy(node, copy_once)
        return copies[node]

    for name in subgraph.nodes:
        copy_once(nodes[name])
    graph.output(tuple(copies[nodes[name]] for name in subgraph.outputs))
    extracted = GraphModule(module, graph)
    return extracted.train(module.training)


def _add_stand_in(graph: Graph, entry: Node, original: Node, node: Node) -> Node:
    """Add a tensor of the shape of a node's value that takes no memory: one element, expanded.

    Args:
        graph: Graph to add to.
        entry: Its node that holds the first input.
        original: That input's node in the whole network.
        node: Node of the whole network whose shape is needed.
    """
    shape, layout, of_entry = tensor_shape(node), image_layout(node), image_layout(original)
    if shape is None or of_entry is None:
        raise ValueError(f"{node.name} goes into a subgraph from outside and is no tensor")
    sizes: list[int | Node] = list(shape)
    if layout is not None:
        rows = graph.call_method("size", (entry, of_entry.dim))
        number = graph.call_function(floordiv, (rows, of_entry.rows))
        sizes[layout.dim] = graph.call_function(mul, (number, layout.rows))
    scalar = graph.call_method("new_empty", (entry, ()))
    return graph.call_method("expand", (scalar, *sizes))


def _cut_before_layers(graph: NetworkGraph) -> list[list[str]]:
    """Cut the computed nodes before every layer call but the first, where tensors alone pass."""
    calls = {node for layer in graph.layers.values() for node in layer.nodes}
    cuts: list[list[str]] = [[]]
    has_layer = False
    position = {node: index for index, node in enumerate(graph.module.graph.nodes)}
    alive: set[Node] = set()
    for node in graph.module.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        alive = {value for value in alive if _is_read_later(value, position, position[node])}
        if node.name in calls and has_layer and all(map(image_layout, alive)):
            cuts.append([])
        if carries_values(node):
            alive.add(node)
        has_layer = has_layer or node.name in calls
        cuts[-1].append(node.name)
    return cuts


def _is_read_later(value: Node, position: Mapping[Node, int], now: int) -> bool:
    """Tell whether another value is computed of this one at a position, or after it."""
    readers = (user for user in value.users if user.op == "output" or carries_values(user))
    return any(position[user] >= now for user in readers)


def make_subgraph(graph: NetworkGraph, names: Sequence[str]) -> Subgraph:
    """Make the subgraph that consists of some consecutive nodes.

    Args:
        graph: Traced network.
        names: Names of the nodes, in execution order.
    """
    nodes = {node.name: node for node in graph.module.graph.nodes}
    calls = {node: layer.name for layer in graph.layers.values() for node in layer.nodes}
    inside = set(names)
    # A node that gives a number may read a tensor outside (its size): that is no input.
    inputs = _drop_repeats(
        source.name
        for name in names
        for source in nodes[name].all_input_nodes
        if source.name not in inside and carries_values(source) and carries_values(nodes[name])
    )
    outputs = tuple(
        name
        for name in names
        if carries_values(nodes[name])
        and any(
            user.op == "output" or (user.name not in inside and carries_values(user))
            for user in nodes[name].users
        )
    )
    layers = _drop_repeats(calls[name] for name in names if name in calls)
    layouts = {name: image_layout(nodes[name]) or ImageLayout() for name in (*inputs, *outputs)}
    return Subgraph(tuple(names), inputs, outputs, layers, layouts)


def _drop_repeats(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
