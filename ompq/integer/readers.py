"""Who reads a value: layers, directly or behind what hands it on as it is, or something else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from ompq.cost import PIXEL_BITS
from ompq.graph.operations import IDENTITIES, LAYOUTS, operation
from ompq.integer.forms import CASTS, find_form
from ompq.integer.layers import QuantizedLayer

# These hand on what they read, to layers too, whatever its scale.
_HANDING_ON = (LAYOUTS | IDENTITIES) - CASTS


@dataclass(frozen=True)
class QuantizedSite:
    """A place at which a value is quantized, and for whom.

    Attributes:
        path: Path of the requantizer.
        node: Name, in the network before the conversion, of the node whose value it is.
        readers: Names of the nodes that read the value quantized there.
        bits: Width of the integers.
        behind: Path of the requantizer that has quantized the value before; empty without one.
    """

    path: str
    node: str
    readers: tuple[str, ...]
    bits: int
    behind: str = ""


@dataclass(frozen=True)
class LayerReaders:
    """The quantized layers of a network, and what leads to them.

    Attributes:
        module: Traced network with quantized layers.
        left_in_float: Names of the nodes whose values stay in float, whatever they compute.
    """

    module: GraphModule
    left_in_float: Collection[str]

    def calls(self) -> Iterator[Node]:
        """Iterate over the nodes that call layers, in execution order."""
        return filter(self.is_layer, self.module.graph.nodes)

    def is_layer(self, node: Node) -> bool:
        """Tell whether a node calls a quantized layer."""
        return node.op == "call_module" and isinstance(
            self.module.get_submodule(str(node.target)), QuantizedLayer
        )

    def get_layer(self, node: Node) -> QuantizedLayer:
        """Return the layer that a node calls."""
        found = self.module.get_submodule(str(node.target))
        assert isinstance(found, QuantizedLayer)
        return found

    def is_or_leads_to_layer(self, node: Node) -> bool:
        """Tell whether a node calls a layer, or hands its input on as it is and to layers alone."""
        return self.is_layer(node) or self.leads_to_layers(node)

    def leads_to_layers(self, node: Node) -> bool:
        """Tell whether a node hands its input on as it is, and to layers alone."""
        if not node.op.startswith("call_") or node.name in self.left_in_float:
            return False
        handing_on = operation(node, self.module) in _HANDING_ON
        if not (handing_on and node.users and find_form(node, self.module)):
            return False
        return all(self.is_or_leads_to_layer(user) for user in node.users)

    def find_layers_behind(self, node: Node) -> list[QuantizedLayer]:
        """Return the layer that a node calls, or those that it leads to; none for other nodes."""
        if self.is_layer(node):
            return [self.get_layer(node)]
        if not self.leads_to_layers(node):
            return []
        return [layer for user in node.users for layer in self.find_layers_behind(user)]


def find_read_values(
    readers: LayerReaders, act_bits: Mapping[str, int], image_maps: Collection[str]
) -> list[tuple[list[Node], int]]:
    """Find the nodes whose values layers read as integers, and the widths of these.

    Where reshaping lies between, the node is the one before: what is requantized is the value that
    was computed, once, and not every shape of it. A layer that is called twice has one scale of
    sums, and so must read one scale: its nodes come together.

    Args:
        readers: Layers of the network.
        act_bits: Layer → width of what it reads.
        image_maps: Names of the nodes whose values are the images, which keep their pixels' bits.

    Returns:
        Nodes whose values have one scale, and the widest width that a layer reads them at.
    """
    widths: dict[Node, int] = {}
    first: dict[str, Node] = {}
    heads: dict[Node, Node] = {}
    for call in readers.calls():
        source = call.all_input_nodes[0]
        while source.op.startswith("call_") and readers.leads_to_layers(source):
            source = source.all_input_nodes[0]
        name = str(call.target)
        widths[source] = max(widths.get(source, 0), act_bits[name])
        head = _find_head(heads, first.setdefault(name, source))
        heads[_find_head(heads, source)] = head
    widths |= {node: PIXEL_BITS for node in widths if node.name in image_maps}
    together: dict[Node, list[Node]] = defaultdict(list)
    for node in widths:
        together[_find_head(heads, node)].append(node)
    return [(nodes, max(widths[node] for node in nodes)) for nodes in together.values()]


def _find_head(heads: Mapping[Node, Node], node: Node) -> Node:
    """Find the node that stands for those that must have one scale with this one."""
    while heads.get(node, node) is not node:
        node = heads[node]
    return node
