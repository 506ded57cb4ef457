"""Which operations between layers get an integer form of their own, and which values they read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.fx import GraphModule, Node

from ompq.errors import UNSUITED_ERRORS
from ompq.graph.operations import (
    ADDITIONS,
    CONCATENATIONS,
    carries_values,
    find_values,
    image_layout,
    operation,
    tensor_shape,
)
from ompq.integer.batch_norm import replace_standalone_norms
from ompq.integer.forms import CASTS, Form, find_form, holds_floats
from ompq.integer.inserted import find_original, is_inserted
from ompq.integer.layers import QuantizedLayer
from ompq.integer.normalisation import IntegerNorm, find_norm
from ompq.integer.operations import NARROW_BITS, IntegerOperation, Trial, agree, is_narrow, isolate
from ompq.integer.pointwise import IntegerAffine, LookupTable, find_nature
from ompq.integer.products import IntegerProduct, count_products
from ompq.integer.requantization import ScaleSource
from ompq.integer.softmax import IntegerSoftmax, find_softmax

Sources = Mapping[Node, ScaleSource | None]


@dataclass(frozen=True)
class Finding:
    """What was found of an operation.

    Attributes:
        bits: Width that it reads; None where it reads any width of one scale.
        make: Function that makes the integer form, of the operation as a network of its own and of
            the sources of the scales of what it reads.
        is_norm: Whether it is a norm.
    """

    bits: int | None
    make: Callable[[GraphModule, Sequence[ScaleSource]], IntegerOperation]
    is_norm: bool = False

    def fits(self, source: ScaleSource) -> bool:
        """Tell whether a value can be read as it is; values of 8 bits can for narrower ones."""
        return not source.per_channel if self.bits is None else is_narrow(source)


class Substitution:
    """Finds integer forms for the operations of a network that is being rewritten.

    Args:
        module: The network, with recorded shapes.
        left_in_float: Names of the nodes whose values stay in float, whatever they compute.
        product_bits: Node of a product of two values → width that it reads; others read 8 bits.
        probabilities: Names of the nodes of probabilities, of which products read 8 bits.
    """

    def __init__(
        self,
        module: GraphModule,
        left_in_float: frozenset[str],
        product_bits: Mapping[str, int] | None = None,
        probabilities: Collection[str] = (),
    ) -> None:
        self.module, self.left_in_float = module, left_in_float
        self._product_bits, self._probabilities = product_bits or {}, probabilities
        self._found: dict[Node, Finding | None] = {}
        self._leading: dict[Node, bool] = {}

    def find_read_bits(self, node: Node, value: Node, scale_sources: Sources) -> int | None:
        """Find the width of the integers that an operation will read a value as.

        Args:
            node: Node that nothing was substituted for yet.
            value: Value that it reads.
            scale_sources: Source of the scale of each value, as far as they are known.

        Returns:
            At most 8; None where it reads the value as it is, or in float.
        """
        finding = self._find(node)
        if finding is None:
            return None
        if any(scale_sources[x] is None for x in find_values(node) if x in scale_sources):
            return None
        if find_original(value, self.module) in self._probabilities:
            return NARROW_BITS
        source = scale_sources[value]
        shares = source is not None and source.per_channel
        return NARROW_BITS if finding.bits is None and shares else finding.bits

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
        found = [scale_sources.get(source) for source in find_values(node)]
        sources = [source for source in found if source is not None and finding.fits(source)]
        function = isolate(node, self.module)
        if len(sources) < len(found) or function is None:
            return None
        replace_standalone_norms(function)
        return finding.make(function, sources)

    def _find(self, node: Node) -> Finding | None:
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

    def _try(self, node: Node) -> Finding | None:
        """Find, by trying, what an operation is."""
        values = find_values(node)
        shapes = [shape for shape in map(tensor_shape, values) if shape is not None]
        function = isolate(node, self.module) if len(shapes) == len(values) <= 2 else None
        if function is None:
            return None
        if len(shapes) == 2:
            count = count_products(function, shapes)
            bits = self._product_bits.get(node.name, NARROW_BITS)
            return None if count is None else Finding(bits, partial(_make_product, count))
        layout = image_layout(node)
        return find_single(function, shapes[0], None if layout is None else layout.dim)


def find_single(
    function: GraphModule, shape: tuple[int, ...], images_dim: int | None
) -> Finding | None:
    """Find, by trying, what an operation of one value is, which has the value's shape.

    Args:
        function: The operation, in float.
        shape: Shape of the value for one image.
        images_dim: Dimension along which the images are; None where that cannot be told.

    Returns:
        What it is; None for anything else, and for what mixes images.
    """
    found = _find_for_one_image(function, shape, images_dim)
    if found is None or images_dim is None:
        return found
    return found if _keeps_images_apart(function, shape, images_dim) else None


def _keeps_images_apart(function: GraphModule, shape: tuple[int, ...], images_dim: int) -> bool:
    """Tell, by trying, whether two images give together what they give one after the other.

    What is subtracted from itself, or summed up, may mix images and look harmless for one alone.
    """
    trial, generator = Trial.of(function), torch.Generator().manual_seed(0)
    one, other = (torch.randn(shape, generator=generator).double() for _ in range(2))
    try:
        together = trial.run(torch.cat([one, other], images_dim))
        apart = torch.cat([trial.run(one), trial.run(other)], images_dim)
    except UNSUITED_ERRORS:
        return False
    return together.shape == apart.shape and agree(together, apart)


def _find_for_one_image(
    function: GraphModule, shape: tuple[int, ...], images_dim: int | None
) -> Finding | None:
    nature = find_nature(function, shape, images_dim)
    if nature is not None:
        kind = IntegerAffine if nature.is_affine else LookupTable
        return Finding(NARROW_BITS, lambda own, sources: kind(own, sources[0], nature))
    dim = find_softmax(function, shape, images_dim)
    if dim is not None:
        return Finding(None, lambda own, sources: IntegerSoftmax(own, sources[0], dim))
    norm = find_norm(function, shape, images_dim)
    if norm is not None:
        return Finding(
            None, lambda own, sources: IntegerNorm(own, sources[0], norm, shape), is_norm=True
        )
    return None


def _make_product(
    count: int, function: GraphModule, sources: Sequence[ScaleSource]
) -> IntegerOperation:
    return IntegerProduct(function, sources, count)
