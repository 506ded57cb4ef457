"""Which operations between layers get an integer form of their own, and which values they read."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch.fx import GraphModule, Node

from ompq.graph.operations import (
    PRODUCTS,
    carries_values,
    image_layout,
    operation,
    tensor_shape,
)
from ompq.integer.batch_norm import replace_standalone_norms
from ompq.integer.forms import CASTS, find_form
from ompq.integer.inserted import is_inserted
from ompq.integer.layers import QuantizedLayer
from ompq.integer.operations import IntegerOperation, IntegerProduct, is_narrow, isolate
from ompq.integer.pointwise import IntegerAffine, LookupTable, Nature, find_nature
from ompq.integer.requantization import ScaleSource

Sources = Mapping[Node, ScaleSource | None]


class Substitution:
    """Finds integer forms for the operations of a network that is being rewritten.

    Args:
        module: The network, with recorded shapes.
        left_in_float: Names of the nodes whose values stay in float, whatever they compute.
    """

    def __init__(self, module: GraphModule, left_in_float: Collection[str]) -> None:
        self.module, self.left_in_float = module, left_in_float
        self._natures: dict[Node, Nature | None] = {}

    def reads_narrow(self, node: Node, scale_sources: Sources) -> bool:
        """Tell whether an operation will read integers of 8 bits.

        Args:
            node: Node that nothing was substituted for yet.
            scale_sources: Source of the scale of each value, as far as they are known.
        """
        if not self._may_compute(node):
            return False
        known = [scale_sources[x] for x in _find_values(node) if x in scale_sources]
        if any(source is None for source in known):
            return False
        return self._is_product(node) or self._find_nature(node) is not None

    def make(self, node: Node, scale_sources: Sources) -> IntegerOperation | None:
        """Make the integer form of an operation; None where it has none.

        Args:
            node: Node of the operation, in training's and evaluation's float.
            scale_sources: Source of the scale of each value that it reads.
        """
        if not self._may_compute(node):
            return None
        found = [scale_sources.get(source) for source in _find_values(node)]
        sources = [source for source in found if source is not None and is_narrow(source)]
        nature = None if self._is_product(node) else self._find_nature(node)
        if len(sources) < len(found) or not (self._is_product(node) or nature):
            return None
        function = isolate(node, self.module)
        if function is None:
            return None
        replace_standalone_norms(function)
        if nature is None:
            return IntegerProduct(function, sources)
        kind = IntegerAffine if nature.is_affine else LookupTable
        return kind(function, sources[0], nature)

    def _may_compute(self, node: Node) -> bool:
        """Tell whether a node computes floats of values in a way that integers do not follow."""
        if not node.op.startswith("call_") or node.name in self.left_in_float:
            return False
        if not carries_values(node) or tensor_shape(node) is None or "out" in node.kwargs:
            return False
        if is_inserted(node, self.module) or self._is_layer(node):
            return False
        if operation(node, self.module) in CASTS:
            return False
        kind = node.meta.get("dtype")
        floats = kind is None or kind.is_floating_point
        return floats and find_form(node, self.module) is None

    def _is_layer(self, node: Node) -> bool:
        called = node.op == "call_module" and self.module.get_submodule(str(node.target))
        return isinstance(called, QuantizedLayer)

    def _is_product(self, node: Node) -> bool:
        known = operation(node, self.module) in PRODUCTS and node.op != "call_module"
        return known and len(_find_values(node)) == len(node.all_input_nodes) == 2

    def _find_nature(self, node: Node) -> Nature | None:
        if node not in self._natures:
            self._natures[node] = self._try(node)
        return self._natures[node]

    def _try(self, node: Node) -> Nature | None:
        values = _find_values(node)
        shape, layout = tensor_shape(node), image_layout(node)
        if len(values) != 1 or shape is None or tensor_shape(values[0]) != shape:
            return None
        function = isolate(node, self.module)
        dim = None if layout is None else layout.dim
        return None if function is None else find_nature(function, shape, dim)


def _find_values(node: Node) -> list[Node]:
    return [source for source in node.all_input_nodes if carries_values(source)]
