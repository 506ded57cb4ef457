"""Single-entry single-exit blocks, found from the graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule, Node

from ompq.graph.operations import ADDITIONS, carries_values, operation, tensor_shape

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Block:
    """A part of the network with one tensor going in and one coming out.

    `entry` is the node whose value goes in, `exit` the node whose value comes out, `nodes` what is
    computed between (with `exit`, without `entry`) and `layers` the layer calls among them.
    """

    entry: str
    exit: str
    nodes: tuple[str, ...]
    layers: tuple[str, ...]


def find_blocks(traced: GraphModule, layer_calls: Iterable[str]) -> tuple[Block, ...]:
    """Cut the network where one single tensor is alive, and join cuts into blocks.

    A part that adds two of its values is a residual block of its own. Other consecutive parts with
    layers form one block where one custom module (neither the network itself nor a plain
    container) calls them: the inverted residual without a shortcut. Whatever follows a layer
    without holding another one (norm, activation, pooling) is its tail.

    Args:
        traced: the network, with recorded shapes.
        layer_calls: names of the nodes that call a quantizable layer.
    """
    calls = set(layer_calls)
    runs: list[_Run] = []
    for nodes in _parts_between_cuts(traced):
        layers = [node for node in nodes if node.name in calls]
        part = _Run(nodes, _owner(layers), _adds(nodes, traced))
        if runs and (not layers or not runs[-1].has_layers or runs[-1].goes_on_in(part)):
            runs[-1].extend(part, bool(layers))
        else:
            runs.append(part)
        runs[-1].has_layers = runs[-1].has_layers or bool(layers)
    entry = next(node.name for node in traced.graph.nodes if node.op == "placeholder")
    blocks = []
    for run in runs:
        names = tuple(node.name for node in run.nodes)
        blocks.append(Block(entry, names[-1], names, tuple(n for n in names if n in calls)))
        entry = names[-1]
    return tuple(blocks)


@dataclass
class _Run:
    """Consecutive parts that will be one block; `owner` is the module path that calls them."""

    nodes: list[Node]
    owner: str | None
    is_residual: bool
    has_layers: bool = False

    def goes_on_in(self, part: _Run) -> bool:
        if self.is_residual or part.is_residual or self.owner is None or part.owner is None:
            return False
        return _within(self.owner, part.owner) or _within(part.owner, self.owner)

    def extend(self, part: _Run, with_layers: bool) -> None:
        self.nodes = self.nodes + part.nodes
        if with_layers:
            nested = self.owner is not None and part.owner is not None
            is_outer = nested and _within(str(self.owner), str(part.owner))
            self.owner = part.owner if is_outer or not self.has_layers else self.owner
            self.is_residual = self.is_residual or part.is_residual


def _within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(outer + ".")


def _adds(part: list[Node], traced: GraphModule) -> bool:
    """Whether the part adds two of the values that it computes or receives."""
    for node in part:
        sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
        if len(sources) > 1 and operation(node, traced) in ADDITIONS:
            return all(tensor_shape(source) is not None for source in sources)
    return False


def _owner(layers: list[Node]) -> str | None:
    """Path of the innermost custom module (not the network, no container) calling all `layers`."""
    stacks = [list(node.meta.get("nn_module_stack", {}).values())[:-1] for node in layers]
    shared = [entry for entry in stacks[0] if all(entry in s for s in stacks)] if stacks else []
    paths = [str(path) for path, kind in shared if path and not issubclass(kind, _CONTAINERS)]
    return paths[-1] if paths else None


def _parts_between_cuts(traced: GraphModule) -> list[list[Node]]:
    """Computed nodes in order, split after each node whose value alone is alive."""
    computed = [node for node in traced.graph.nodes if node.op not in ("placeholder", "output")]
    position = {node: index for index, node in enumerate(traced.graph.nodes)}
    last_use = {node: max(map(position.__getitem__, node.users), default=-1) for node in position}
    parts: list[list[Node]] = []
    part: list[Node] = []
    alive: set[Node] = {node for node in position if node.op == "placeholder"}
    for node in computed:
        part.append(node)
        if carries_values(node):
            alive.add(node)
        alive = {value for value in alive if last_use[value] > position[node]}
        if alive == {node} and tensor_shape(node) is not None:
            parts.append(part)
            part = []
    if part:
        parts.append(part)
    return parts
