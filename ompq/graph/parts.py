"""A part of a traced network as a network of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch.fx import Graph, GraphModule, Node

from ompq.graph.network import NetworkGraph
from ompq.graph.operations import carries_values, tensor_shape

GRANULARITIES = ("block", "layer")


@dataclass(frozen=True)
class Part:
    """Consecutive nodes of a network, the tensors that come in, and those that go out.

    `layers` names the layers that are called, in execution order.
    """

    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...]

    @property
    def name(self) -> str:
        """What its layers have in common (`layer1.0`), or their first name."""
        if not self.layers:
            return self.outputs[-1]
        split = [layer.split(".") for layer in self.layers]
        shared = []
        for names in zip(*split, strict=False):
            if len(set(names)) > 1:
                break
            shared.append(names[0])
        return ".".join(shared) or self.layers[0]


def parts_of(graph: NetworkGraph, granularity: str) -> tuple[Part, ...]:
    """The network cut into parts in execution order, every node in exactly one.

    Args:
        graph: the network.
        granularity: `block`, its single-entry single-exit blocks; `layer`, one part per layer
            call, with what follows it up to the next (a part may then have several inputs).
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity {granularity!r} is none of {', '.join(GRANULARITIES)}")
    if granularity == "block":
        cuts = [list(block.nodes) for block in graph.blocks]
    else:
        cuts = _cut_before_layers(graph)
    return tuple(part_of(graph, nodes) for nodes in cuts)


def extract(module: GraphModule, part: Part) -> GraphModule:
    """The network that computes `part.outputs` (a tuple) from `part.inputs`.

    Its modules are those of `module`, not copies. Sizes that were read off tensors outside of the
    part are read off stand-ins of their shape (for as many images as the first input holds).
    """
    nodes = {node.name: node for node in module.graph.nodes}
    graph = Graph()
    copies: dict[Node, Node] = {}
    for name in part.inputs:
        copies[nodes[name]] = graph.placeholder(name)
    entry = copies[nodes[part.inputs[0]]]

    def copied(node: Node) -> Node:
        if node in copies:
            return copies[node]
        if node.name not in inside and carries_values(node):
            copies[node] = _stand_in(graph, entry, node)
        else:
            copies[node] = graph.node_copy(node, copied)
        return copies[node]

    inside = set(part.nodes)
    for name in part.nodes:
        copied(nodes[name])
    graph.output(tuple(copies[nodes[name]] for name in part.outputs))
    extracted = GraphModule(module, graph)
    return extracted.train(module.training)


def _stand_in(graph: Graph, entry: Node, node: Node) -> Node:
    """A tensor without memory of the shape of `node`'s value."""
    shape = tensor_shape(node)
    if shape is None:
        raise ValueError(f"{node.name} goes into a part from outside and is no tensor")
    number = graph.call_method("size", (entry, 0))
    scalar = graph.call_method("new_empty", (entry, ()))
    return graph.call_method("expand", (scalar, number, *shape[1:]))


def _cut_before_layers(graph: NetworkGraph) -> list[list[str]]:
    calls = {node for layer in graph.layers.values() for node in layer.nodes}
    cuts: list[list[str]] = [[]]
    has_layer = False
    for node in graph.module.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node.name in calls and has_layer:
            cuts.append([])
        has_layer = has_layer or node.name in calls
        cuts[-1].append(node.name)
    return cuts


def part_of(graph: NetworkGraph, names: Sequence[str]) -> Part:
    """The part that consists of some consecutive nodes, by name."""
    nodes = {node.name: node for node in graph.module.graph.nodes}
    calls = {node: layer.name for layer in graph.layers.values() for node in layer.nodes}
    inside = set(names)
    inputs = _unique(
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
    layers = _unique(calls[name] for name in names if name in calls)
    return Part(tuple(names), inputs, outputs, layers)


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
