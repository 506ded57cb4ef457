"""The memory that activations take: how wide every value is, and the step at which most is needed.

A value is as wide as the network of integers stores it: the images and what sums, concatenations
and averages read has 8 bits, what layers alone read their activation width, and what is computed in
float 32. What only clips, chooses or arranges stored integers is as wide as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from torch.fx import Node

from ompq.assignment import Assignment
from ompq.cost import FLOAT_BITS, PIXEL_BITS
from ompq.graph import NetworkGraph, Schedule, build_schedule
from ompq.integer import ConversionSettings, IntegerNetwork
from ompq.integer.convert import convert_to_integers
from ompq.integer.forms import Form, find_form
from ompq.integer.inserted import find_original

BITS_PER_KB = 8 * 1024
# Weights take part in no activation: any width does.
_WEIGHT_BITS = 8
# These do to stored integers what they do to wide ones.
_HANDING_ON = (Form.CLIP, Form.KEEP, Form.SCALE, Form.POOL, Form.ARRANGE)


@dataclass(frozen=True)
class MemoryPeak:
    """The most memory that activations take at one time.

    Attributes:
        kb: Memory for one image, KB (1024 bytes).
        step: Where it is reached: the module that is called, else the node.
    """

    kb: float
    step: str


def measure_peak(graph: NetworkGraph, assignment: Assignment) -> MemoryPeak:
    """Measure the most memory that activations take at one time, for one image.

    Args:
        graph: Float network.
        assignment: Widths of its groups, of which those of activations matter.
    """
    return find_peak(graph, assignment.layer_act_bits())


def find_peak(graph: NetworkGraph, act_bits: Mapping[str, int]) -> MemoryPeak:
    """Find the most memory that activations take at one time, for one image.

    Args:
        graph: Float network, its batch norms folded or not.
        act_bits: Layer → width of what it reads.
    """
    schedule = build_schedule(graph)
    widths = find_value_widths(graph, schedule, act_bits)
    step, bits = schedule.find_peak(widths)
    return MemoryPeak(bits / BITS_PER_KB, step.name)


def find_value_widths(
    graph: NetworkGraph, schedule: Schedule, act_bits: Mapping[str, int]
) -> dict[str, int]:
    """Find the bits that one element of every value takes.

    Args:
        graph: Float network.
        schedule: Its schedule.
        act_bits: Layer → width of what it reads.

    Returns:
        Value → bits.
    """
    weight_bits = dict.fromkeys(graph.layers, _WEIGHT_BITS)
    # Layers of a hidden network share parameters with nothing: the conversion works on a copy.
    converted = convert_to_integers(graph, weight_bits, act_bits, ConversionSettings())
    edges = _StoredWidths(graph, converted)
    found: dict[str, int] = defaultdict(int)
    for node in graph.module.graph.nodes:
        home = schedule.homes.get(node.name)
        if home is None:
            continue
        for user in node.users:
            # What is read in the place where it lies is not stored before.
            if schedule.homes.get(user.name) != home:
                found[home] = max(found[home], edges.find_width(node, user))
    # Of what nobody reads, nothing is known.
    widths = {home: found[home] or FLOAT_BITS for home in schedule.elements}
    # What is inside of an operation is stored nowhere.
    inside = {name for names in converted.merged.values() for name in names}
    stored = {home for name, home in schedule.homes.items() if name not in inside}
    return {home: bits if home in stored else 0 for home, bits in widths.items()}


class _StoredWidths:
    """Widths at which a network of integers stores the values of the network it was made of.

    Args:
        graph: Float network.
        converted: Its network of integers.
    """

    def __init__(self, graph: NetworkGraph, converted: IntegerNetwork) -> None:
        self._module = graph.module
        self._image_maps = converted.image_maps
        self._sites: dict[str, list[tuple[frozenset[str], int]]] = defaultdict(list)
        for site in converted.sites:
            if not site.behind:
                self._sites[site.node].append((frozenset(site.readers), site.bits))
        self._of_integers = {
            find_original(node, converted.module)
            for node in converted.module.graph.nodes
            if converted.scale_sources.get(node.name) is not None
        }
        # A norm that belongs to a layer is that layer.
        norms = {layer.batch_norm: layer.nodes[-1] for layer in graph.layers.values()}
        self._layers = {
            node.name: norms[str(node.target)]
            for node in graph.module.graph.nodes
            if node.op == "call_module" and str(node.target) in norms
        }

    def find_width(self, node: Node, user: Node) -> int:
        """Find the width at which a node's value is stored for one of those who read it."""
        stored = self._find_site(node, user)
        if stored is not None:
            return stored
        if self._get_name(node) not in self._of_integers or user.op == "output":
            return FLOAT_BITS
        if self._hands_on(user) and user.users:
            return max(self.find_width(user, further) for further in user.users)
        return FLOAT_BITS

    def _find_site(self, node: Node, user: Node) -> int | None:
        """Find the width of integers that were stored at a node or before it; None without them."""
        if node.name in self._image_maps:
            return PIXEL_BITS
        for readers, bits in self._sites[self._get_name(node)]:
            if user.name in readers:
                return bits
        if self._hands_on(node):
            return self._find_site(node.all_input_nodes[0], node)
        return None

    def _hands_on(self, node: Node) -> bool:
        """Tell whether a node does to stored integers what it does to wide ones."""
        if len(node.all_input_nodes) != 1 or not node.op.startswith("call_"):
            return False
        return node.name not in self._layers and find_form(node, self._module) in _HANDING_ON

    def _get_name(self, node: Node) -> str:
        return self._layers.get(node.name, node.name)
