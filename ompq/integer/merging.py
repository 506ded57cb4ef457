"""Operations that a network writes as several, made one where they are one.

A layer norm spelled out as means and a root, an activation as a product with a function of the same
value: step by step they would lose precision, or stay in float. What a stretch of the network
computes is found by trying it, as with single operations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from ompq.graph.operations import (
    ADDITIONS,
    CONCATENATIONS,
    find_values,
    image_layout,
    operation,
    tensor_shape,
)
from ompq.integer.forms import find_form, holds_floats
from ompq.integer.layers import QuantizedLayer
from ompq.integer.operations import isolate_stretch
from ompq.integer.substitution import find_single

MERGED_PATH = "merged"
# Longer stretches, and those that begin further up, are not tried.
_MOST_NODES = 24
_MOST_SOURCES = 5


@dataclass(frozen=True)
class _Stretch:
    """Nodes that compute a value from one other alone, in execution order; the last has the value.

    Attributes:
        source: Node of the other value.
        nodes: The nodes.
    """

    source: Node
    nodes: tuple[Node, ...]

    @property
    def end(self) -> Node:
        """Return the node of the value that is computed."""
        return self.nodes[-1]


def merge_operations(
    module: GraphModule, left_in_float: Collection[str], only: Collection[str] | None = None
) -> dict[str, tuple[str, ...]]:
    """Put one node in the place of several, wherever these are one operation of one value.

    That node has the name of the last of them, and calls a network of them all.

    Args:
        module: Traced network with quantized layers and recorded shapes; changed in place.
        left_in_float: Names of the nodes whose values stay in float; they are not merged.
        only: Names of the last nodes of what may be merged; None for all that can be.

    Returns:
        Name of the node → names of those that are gone.
    """
    finder = _Finder(module, left_in_float)
    merged = {}
    for stretch in finder.find_all(only):
        function = isolate_stretch(stretch.source, stretch.nodes, module)
        if function is None:
            continue
        end, path = stretch.end, f"{MERGED_PATH}.{stretch.end.name}"
        module.add_submodule(path, function)
        end.op, end.target, end.args, end.kwargs = "call_module", path, (stretch.source,), {}
        for node in reversed(stretch.nodes[:-1]):
            module.graph.erase_node(node)
        merged[end.name] = tuple(node.name for node in stretch.nodes[:-1])
    return merged


def find_entries(node: Node, module: GraphModule) -> tuple[str, ...]:
    """Return the names of the nodes by which a node reads, before any were merged into it."""
    function = _get_merged(node, module)
    if function is None:
        return (node.name,)
    value = next(iter(function.graph.nodes))
    return tuple(user.name for user in value.users)


def restore_merged(module: GraphModule) -> None:
    """Put the nodes that were merged, and got no form of their own, where they were."""
    for node in list(module.graph.nodes):
        function = _get_merged(node, module)
        if function is None:
            continue
        (source,) = node.args
        made: dict[Node, Node] = {}
        with module.graph.inserting_before(node):
            for inner in function.graph.nodes:
                if inner.op == "placeholder":
                    made[inner] = source
                elif inner.op == "output":
                    node.replace_all_uses_with(made[inner.args[0]])
                else:
                    made[inner] = module.graph.node_copy(inner, made.__getitem__)
                    # The graph would take another name than that of a node which it had before.
                    made[inner].name = inner.name
        module.graph.erase_node(node)


def _get_merged(node: Node, module: GraphModule) -> GraphModule | None:
    if node.op != "call_module" or not str(node.target).startswith(f"{MERGED_PATH}."):
        return None
    found = module.get_submodule(str(node.target))
    return found if isinstance(found, GraphModule) else None


class _Finder:
    """Finds stretches that are one operation.

    Args:
        module: Traced network with quantized layers and recorded shapes.
        left_in_float: Names of the nodes whose values stay in float.
    """

    def __init__(self, module: GraphModule, left_in_float: Collection[str]) -> None:
        self.module, self.left_in_float = module, left_in_float
        self.order = {node: place for place, node in enumerate(module.graph.nodes)}
        self.dominators = _find_dominators(module)

    def find_all(self, only: Collection[str] | None) -> Iterator[_Stretch]:
        """Find all stretches that are one operation, none of which has a node of another.

        Args:
            only: Names of the last nodes of stretches to look at; None for all.
        """
        taken: set[Node] = set()
        # The last first: what is one operation may have others inside.
        for node in reversed(self.order):
            if len(find_values(node)) < 2 or node in taken or not self._may_merge(node):
                continue
            stretch = self._find(node)
            if stretch is None or not taken.isdisjoint(stretch.nodes):
                continue
            if only is None or stretch.end.name in only:
                taken |= set(stretch.nodes)
                yield stretch

    def _find(self, join: Node) -> _Stretch | None:
        """Find the longest stretch around a node of two values that is one operation."""
        stretches: list[_Stretch] = []
        source = self.dominators[join]
        while source is not None and len(stretches) < _MOST_SOURCES:
            nodes = self._collect(join, source)
            if nodes is None:
                break
            stretches.append(_Stretch(source, nodes))
            source = self.dominators[source]
        for stretch in reversed(stretches):
            if not self._is_exact(stretch) and self._is_one(stretch):
                return self._extend(stretch)
        return None

    def _collect(self, join: Node, source: Node) -> tuple[Node, ...] | None:
        """Collect the nodes between two; None where others read them, or there are too many."""
        found, waiting = {join}, [join]
        while waiting:
            for value in find_values(waiting.pop()):
                if value is source or value in found:
                    continue
                if not self._may_merge(value) or len(found) == _MOST_NODES:
                    return None
                found.add(value)
                waiting.append(value)
        if any(user not in found for node in found - {join} for user in node.users):
            return None
        return tuple(sorted(found, key=self.order.__getitem__))

    def _may_merge(self, node: Node) -> bool:
        """Tell whether a node computes a tensor, by no layer."""
        if not node.op.startswith("call_") or node.name in self.left_in_float:
            return False
        if node.op == "call_module" and isinstance(
            self.module.get_submodule(str(node.target)), QuantizedLayer
        ):
            return False
        return tensor_shape(node) is not None and node.kwargs.get("out") is None

    def _is_exact(self, stretch: _Stretch) -> bool:
        """Tell whether every node has an exact form on integers anyway."""
        joins = ADDITIONS | CONCATENATIONS
        return all(
            find_form(node, self.module) is not None or operation(node, self.module) in joins
            for node in stretch.nodes
        )

    def _is_one(self, stretch: _Stretch, *, of_norm: bool = False) -> bool:
        """Tell, by trying, whether a stretch is one operation, or one norm."""
        shape, layout = tensor_shape(stretch.source), image_layout(stretch.end)
        if shape is None or tensor_shape(stretch.end) != shape or layout is None:
            return False
        if not holds_floats(stretch.end):
            return False
        function = isolate_stretch(stretch.source, stretch.nodes, self.module)
        found = None if function is None else find_single(function, shape, layout.dim)
        return found is not None and (found.is_norm or not of_norm)

    def _extend(self, stretch: _Stretch) -> _Stretch:
        """Take what follows a norm into it, as long as all is one: what it multiplies by and adds.

        Other operations are left to what follows: a ReLU is part of a requantization.
        """
        while True:
            users = list(stretch.end.users)
            if len(users) != 1 or not self._may_merge(users[0]):
                return stretch
            longer = _Stretch(stretch.source, (*stretch.nodes, users[0]))
            alone = find_values(users[0]) == [stretch.end]
            if not alone or not self._is_one(longer, of_norm=True):
                return stretch
            stretch = longer


def _find_dominators(module: GraphModule) -> Mapping[Node, Node | None]:
    """Find, for every node, the last other one that all ways from the images to it go through."""
    found: dict[Node, Node | None] = {}
    depth: dict[Node, int] = {}
    for node in module.graph.nodes:
        values = find_values(node)
        common: Node | None = values[0] if values else None
        for value in values[1:]:
            other: Node | None = value
            while common is not other and common is not None and other is not None:
                if depth[common] >= depth[other]:
                    common = found[common]
                else:
                    other = found[other]
            if common is not other:
                common = None
        found[node] = common
        depth[node] = 0 if common is None else depth[common] + 1
    return found
