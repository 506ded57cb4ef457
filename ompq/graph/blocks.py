"""Blocks with a single entry and a single exit, found from the graph.

A cut is a node after which no other value is alive: all that follows depends on its value alone. A
segment is what is computed between two cuts that follow each other; blocks are made of segments.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule, Node

from ompq.graph.operations import (
    ADDITIONS,
    carries_values,
    image_layout,
    operation,
    tensor_shape,
)

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Block:
    """Consecutive nodes of a network with one tensor going in and one coming out.

    Attributes:
        entry: Node whose value goes in.
        exit: Node whose value comes out.
        nodes: Nodes that are computed between, with `exit`, without `entry`.
        layers: Nodes among them that call a layer.
    """

    entry: str
    exit: str
    nodes: tuple[str, ...]
    layers: tuple[str, ...]


def find_blocks(traced: GraphModule, layer_calls: Iterable[str]) -> tuple[Block, ...]:
    """Cut the network where a single tensor is alive, and join the segments between into blocks.

    A segment that adds two of its values is a residual block of its own. Other consecutive
    segments with layers form one block where one custom module (neither the network itself nor a
    container of torch.nn) calls them: the inverted residual without a shortcut. What follows a
    layer without holding another one (norm, activation, pooling) belongs to the layer's block.

    Args:
        traced: Traced network with recorded shapes.
        layer_calls: Names of the nodes that call a quantizable layer.

    Returns:
        The blocks in execution order; every computed node is in exactly one.
    """
    calls = set(layer_calls)
    found: list[_OpenBlock] = []
    for nodes in _cut_into_segments(traced):
        layers = [node for node in nodes if node.name in calls]
        segment = _OpenBlock(nodes, _find_owner(layers), _adds_values(nodes, traced))
        # Without layers, a segment joins what is before it; so does the one with the first layers.
        if found and (not layers or not found[-1].has_layers or found[-1].goes_on_in(segment)):
            found[-1].extend(segment, bool(layers))
        else:
            found.append(segment)
        found[-1].has_layers = found[-1].has_layers or bool(layers)
    entry = next(node.name for node in traced.graph.nodes if node.op == "placeholder")
    blocks = []
    for block in found:
        names = tuple(node.name for node in block.nodes)
        blocks.append(Block(entry, names[-1], names, tuple(n for n in names if n in calls)))
        entry = names[-1]
    return tuple(blocks)


@dataclass
class _OpenBlock:
    """Consecutive segments that will be one block.

    Attributes:
        nodes: Nodes of the segments, in execution order.
        owner: Path of the custom module that calls their layers; None where there is none.
        is_residual: Whether two of their values are added.
        has_layers: Whether a layer is among the nodes.
    """

    nodes: list[Node]
    owner: str | None
    is_residual: bool
    has_layers: bool = False

    def goes_on_in(self, segment: _OpenBlock) -> bool:
        """Tell whether a segment with layers belongs to this block: one module calls both."""
        if self.is_residual or segment.is_residual or self.owner is None or segment.owner is None:
            return False
        return _is_within(self.owner, segment.owner) or _is_within(segment.owner, self.owner)

    def extend(self, segment: _OpenBlock, with_layers: bool) -> None:
        """Append a segment; its owner becomes that of the block where it is the outer one."""
        self.nodes = self.nodes + segment.nodes
        if with_layers:
            nested = self.owner is not None and segment.owner is not None
            is_outer = nested and _is_within(str(self.owner), str(segment.owner))
            self.owner = segment.owner if is_outer or not self.has_layers else self.owner
            self.is_residual = self.is_residual or segment.is_residual


def _is_within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(outer + ".")


def _adds_values(nodes: list[Node], traced: GraphModule) -> bool:
    """Tell whether a segment adds two of the values that it computes or receives."""
    for node in nodes:
        sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
        if len(sources) > 1 and operation(node, traced) in ADDITIONS:
            return all(tensor_shape(source) is not None for source in sources)
    return False


def _find_owner(layers: list[Node]) -> str | None:
    """Find the path of the innermost custom module that calls all `layers`.

    Neither the network itself nor a container of torch.nn counts.
    """
    # The modules that torch.fx was in at a call: outermost first, the layer itself last.
    stacks = [list(node.meta.get("nn_module_stack", {}).values())[:-1] for node in layers]
    shared = [entry for entry in stacks[0] if all(entry in s for s in stacks)] if stacks else []
    paths = [str(path) for path, kind in shared if path and not issubclass(kind, _CONTAINERS)]
    return paths[-1] if paths else None


def _cut_into_segments(traced: GraphModule) -> list[list[Node]]:
    """Split the computed nodes, in order, after each node whose value alone is alive."""
    computed = [node for node in traced.graph.nodes if node.op not in ("placeholder", "output")]
    position = {node: index for index, node in enumerate(traced.graph.nodes)}
    last_use = {node: max(map(position.__getitem__, node.users), default=-1) for node in position}
    segments: list[list[Node]] = []
    segment: list[Node] = []
    alive: set[Node] = {node for node in position if node.op == "placeholder"}
    for node in computed:
        segment.append(node)
        # Sizes and other numbers may pass a cut: whoever runs a block alone can make them anew.
        if carries_values(node):
            alive.add(node)
        alive = {value for value in alive if last_use[value] > position[node]}
        if alive == {node} and image_layout(node) is not None:
            segments.append(segment)
            segment = []
    if segment:
        segments.append(segment)
    return segments
