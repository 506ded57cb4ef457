"""Which values are in memory at every step of a network, when it is run in its own order.

A value lies in memory from the step that makes it to the last one that reads it, and the inputs and
the output of a step lie there together. A view of a value has no memory of its own, and neither has
what is computed in the place of its input: what the network changes in place, a batch norm that
belongs to the layer before it, and a ReLU (or another clip) of what nobody reads afterwards, which
is part of the step before it on every device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from ompq.graph.network import NetworkGraph
from ompq.graph.operations import CLIPS, carries_values, operation, tensor_shape


@dataclass(frozen=True)
class Step:
    """One step of a network, and what lies in memory meanwhile.

    Attributes:
        node: Name of the node.
        name: Path of the module that the node calls; else the node's own name.
        live: Names of the values in memory, each by the node that makes it, in order.
    """

    node: str
    name: str
    live: tuple[str, ...]


@dataclass(frozen=True)
class Schedule:
    """The steps of a network in their order, and the values that they make and read.

    Attributes:
        elements: Value → its number of elements for one image; values go by the node that makes
            them.
        homes: Node → the value in whose memory the node's own value lies.
        steps: Steps in execution order, the images first.
    """

    elements: Mapping[str, int]
    homes: Mapping[str, str]
    steps: tuple[Step, ...]

    def count_bits(self, step: Step, bits: Mapping[str, int]) -> int:
        """Count the bits that lie in memory at a step.

        Args:
            step: One of the steps.
            bits: Value → its width in bits.
        """
        return sum(self.elements[value] * bits[value] for value in step.live)

    def find_peak(self, bits: Mapping[str, int]) -> tuple[Step, int]:
        """Find the step of most memory, the first of equals, and the bits that it takes.

        Args:
            bits: Value → its width in bits.
        """
        peak = max(self.steps, key=lambda step: self.count_bits(step, bits))
        return peak, self.count_bits(peak, bits)


def build_schedule(graph: NetworkGraph) -> Schedule:
    """Find what lies in memory at every step of a network.

    Args:
        graph: Traced network, with its batch norms or without.
    """
    nodes = [node for node in graph.module.graph.nodes if _has_value(node)]
    homes = _find_homes(graph, nodes)
    order = {node: place for place, node in enumerate(graph.module.graph.nodes)}
    made: dict[str, int] = {}
    last: dict[str, int] = {}
    for node in nodes:
        home = homes[node]
        made.setdefault(home, order[node])
        reads = [order[user] for user in _find_readers(node)]
        last[home] = max([last.get(home, 0), order[node], *reads])
    steps = []
    for node in graph.module.graph.nodes:
        if node in homes or node.op == "output":
            place = order[node]
            live = tuple(home for home in made if made[home] <= place <= last[home])
            name = str(node.target) if node.op == "call_module" else node.name
            steps.append(Step(node.name, name, live))
    by_name = {node.name: node for node in nodes}
    return Schedule(
        elements={home: _count_elements(by_name[home]) for home in made},
        homes={node.name: home for node, home in homes.items()},
        steps=tuple(steps),
    )


def _has_value(node: Node) -> bool:
    """Tell whether a node's value is computed from images and lies in memory."""
    return node.op == "placeholder" or (node.op.startswith("call_") and carries_values(node))


def _find_readers(node: Node) -> list[Node]:
    """Find the nodes that read a value; reading its shape does not count."""
    return [
        user
        for user in node.users
        if user.op == "output"
        or tensor_shape(user) is not None
        or user.meta.get("holds_tensors", False)
    ]


def _count_elements(node: Node) -> int:
    """Count the elements of a value for one image; of several tensors, those that are taken."""
    shape = tensor_shape(node)
    if shape is not None:
        return prod(shape)
    parts = {user.args[1:]: tensor_shape(user) for user in node.users if len(user.args) > 1}
    return sum(prod(part) for part in parts.values() if part is not None)


def _find_homes(graph: NetworkGraph, nodes: list[Node]) -> dict[Node, str]:
    """Find the value in whose memory each node's own lies; values go by who makes them."""
    sources = _find_views(graph)
    norms = {layer.batch_norm for layer in graph.layers.values() if layer.batch_norm}
    order = {node: place for place, node in enumerate(graph.module.graph.nodes)}
    homes: dict[Node, str] = {}
    # Of every value, the last place at which any view of it is read.
    read: dict[str, int] = {}
    for node in nodes:
        source = sources.get(node.name)
        given = [other for other in node.all_input_nodes if other in homes]
        in_place = len(given) == 1 and _works_in_place(node, graph.module, norms)
        # Nobody reads that memory after this node, whatever view of it.
        if source is None and in_place and read[homes[given[0]]] <= order[node]:
            source = given[0].name
        parent = next((other for other in given if other.name == source), None)
        homes[node] = node.name if parent is None else homes[parent]
        places = [order[user] for user in _find_readers(node)]
        read[homes[node]] = max([read.get(homes[node], 0), order[node], *places])
    return homes


def _works_in_place(node: Node, module: GraphModule, norms: set[str]) -> bool:
    """Tell whether a node can compute in the place of its input, if nobody else needs that."""
    if node.op == "call_module" and str(node.target) in norms:
        return True
    same = tensor_shape(node) == tensor_shape(node.all_input_nodes[0])
    return same and operation(node, module) in CLIPS


def _find_views(graph: NetworkGraph) -> dict[str, str]:
    """Find the nodes whose values share memory with one of their inputs, by running the network.

    Returns:
        Node → that input.
    """
    finder = _ViewFinder(graph.module)
    parameter = next(graph.module.parameters())
    images = torch.zeros(1, *graph.input_shape, device=parameter.device)
    with torch.inference_mode():
        finder.run(images)
    return finder.found


class _ViewFinder(Interpreter):
    """An interpreter that notes which values share memory with an input of their node.

    Attributes:
        found: Node → the first input that it shares memory with.
    """

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.found: dict[str, str] = {}

    def run_node(self, n: Node) -> Any:
        """Run a node, and compare where its value and its inputs lie."""
        value = super().run_node(n)
        if n.meta.get("in_place"):
            self.found[n.name] = n.all_input_nodes[0].name
            return value
        places = _find_places(value)
        for source in n.all_input_nodes:
            if places & _find_places(self.env[source]):
                self.found[n.name] = source.name
                break
        return value


def _find_places(value: Any) -> set[int]:
    """Find the addresses of the memory that the tensors of a value lie in."""
    if isinstance(value, Tensor):
        return {value.untyped_storage().data_ptr()} - {0}
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return set().union(*map(_find_places, value))
    return set()
