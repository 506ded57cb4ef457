"""Which operations between layers get an integer form of their own, and which values they read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch.fx import GraphModule, Node

from ompq.graph.operations import (
    ADDITIONS,
    CONCATENATIONS,
    carries_values,
    image_layout,
    operation,
    tensor_shape,
)
from ompq.integer.batch_norm import replace_standalone_norms
from ompq.integer.forms import CASTS, Form, find_form, holds_floats
from ompq.integer.inserted import is_inserted
from ompq.integer.layers import QuantizedLayer
from ompq.integer.normalisation import IntegerNorm, find_norm
from ompq.integer.operations import IntegerOperation, is_narrow, isolate
from ompq.integer.pointwise import IntegerAffine, LookupTable, find_nature
from ompq.integer.products import IntegerProduct, count_products
from ompq.integer.requantization import ScaleSource
from ompq.integer.softmax import IntegerSoftmax, find_softmax

Sources = Mapping[Node, ScaleSource | None]


@dataclass(frozen=True)
class _Finding:
    """What was found of an operation.

    Attributes:
        narrow: Whether it reads 8 bits, rather than any width of one scale.
        make: Function that makes the integer form, of the operation as a network of its own and of
            the sources of the scales of what it reads.
        is_norm: Whether it is a norm.
    """

    narrow: bool
    make: Callable[[GraphModule, Sequence[ScaleSource]], IntegerOperation]
    is_norm: bool = False


class Substitution:
    """Finds integer forms for the operations of a network that is being rewritten.

    Args:
        module: The network, with recorded shapes.
        left_in_float: Names of the nodes whose values stay in float, whatever they compute.
    """

    def __init__(self, module: GraphModule, left_in_float: Collection[str]) -> None:
        self.module, self.left_in_float = module, left_in_float
        self._found: dict[Node, _Finding | None] = {}
        self._leading: dict[Node, bool] = {}

    def reads_narrow(self, node: Node, value: Node, scale_sources: Sources) -> bool:
        """Tell whether an operation will read a value as integers of 8 bits.

        Args:
            node: Node that nothing was substituted for yet.
            value: Value that it reads.
            scale_sources: Source of the scale of each value, as far as they are known.
        """
        finding = self._find(node)
        if finding is None:
            return False
        if any(scale_sources[x] is None for x in _find_values(node) if x in scale_sources):
            return False
        source = scale_sources[value]
        return finding.narrow or (source is not None and source.per_channel)

    def leads_to_norm(self, node: Node) -> bool:
        """Tell whether a norm reads a sum, directly or behind what hands it on or adds to it.

        Norms read sums as they are: what is far smaller than the rest would be lost in 8 bits.

        Args:
            node: Node of the sum, for which nothing was substituted yet.
        """
        if node not in self._leading:
            self._leading[node] = any(map(self._is_or_leads_to_norm, node.users))
        return self._leading[node]

    def _is_or_leads_to_norm(self, node: Node) -> bool:
        finding = self._find(node)
        if finding is not None:
            return finding.is_norm
        if not node.op.startswith("call_"):
            return False
        form = find_form(node, self.module)
        joins = form is None and operation(node, self.module) in ADDITIONS | CONCATENATIONS
        return (joins or form in (Form.KEEP, Form.ARRANGE)) and self.leads_to_norm(node)

    def make(self, node: Node, scale_sources: Sources) -> IntegerOperation | None:
        """Make the integer form of an operation; None where it has none.

        Args:
            node: Node of the operation, in training's and evaluation's float.
            scale_sources: Source of the scale of each value that it reads.
        """
        finding = self._find(node)
        if finding is None:
            return None
        found = [scale_sources.get(source) for source in _find_values(node)]
        fits = is_narrow if finding.narrow else _has_one_scale
        sources = [source for source in found if source is not None and fits(source)]
        function = isolate(node, self.module)
        if len(sources) < len(found) or function is None:
            return None
        replace_standalone_norms(function)
        return finding.make(function, sources)

    def _find(self, node: Node) -> _Finding | None:
        if not self._may_compute(node):
            return None
        if node not in self._found:
            self._found[node] = self._try(node)
        return self._found[node]

    def _may_compute(self, node: Node) -> bool:
        """Tell whether a node computes floats of values in a way that integers do not follow."""
        if not node.op.startswith("call_") or node.name in self.left_in_float:
            return False
        if (
            not carries_values(node)
            or tensor_shape(node) is None
            or node.kwargs.get("out") is not None
        ):
            return False
        if is_inserted(node, self.module) or self._is_layer(node):
            return False
        if operation(node, self.module) in CASTS:
            return False
        return holds_floats(node) and find_form(node, self.module) is None

    def _is_layer(self, node: Node) -> bool:
        called = node.op == "call_module" and self.module.get_submodule(str(node.target))
        return isinstance(called, QuantizedLayer)

    def _try(self, node: Node) -> _Finding | None:
        """Find, by trying, what an operation is."""
        values = _find_values(node)
        shapes = [shape for shape in map(tensor_shape, values) if shape is not None]
        function = isolate(node, self.module) if len(shapes) == len(values) <= 2 else None
        if function is None:
            return None
        if len(shapes) == 2:
            count = count_products(function, shapes)
            return None if count is None else _Finding(True, partial(_make_product, count))
        layout = image_layout(node)
        return self._try_one(function, shapes[0], None if layout is None else layout.dim)

    def _try_one(
        self, function: GraphModule, shape: tuple[int, ...], images_dim: int | None
    ) -> _Finding | None:
        """Find what an operation of one value is, which has the value's shape."""
        nature = find_nature(function, shape, images_dim)
        if nature is not None:
            kind = IntegerAffine if nature.is_affine else LookupTable
            return _Finding(True, lambda own, sources: kind(own, sources[0], nature))
        dim = find_softmax(function, shape, images_dim)
        if dim is not None:
            return _Finding(False, lambda own, sources: IntegerSoftmax(own, sources[0], dim))
        norm = find_norm(function, shape, images_dim)
        if norm is not None:
            return _Finding(
                False, lambda own, sources: IntegerNorm(own, sources[0], norm, shape), is_norm=True
            )
        return None


def _make_product(
    count: int, function: GraphModule, sources: Sequence[ScaleSource]
) -> IntegerOperation:
    return IntegerProduct(function, sources, count)


def _has_one_scale(source: ScaleSource) -> bool:
    return not source.per_channel


def _find_values(node: Node) -> list[Node]:
    return [source for source in node.all_input_nodes if carries_values(source)]
