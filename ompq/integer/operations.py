"""Operations between layers that have an integer form of their own: what all of them share.

An operation computes in float while training, on values that are fake-quantized before it. In
evaluation it computes integers from integers, which `compute` alone does, here and where the
written-down numbers are run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import Graph, GraphModule, Node

from ompq.errors import UNSUITED_ERRORS
from ompq.evaluation import find_device
from ompq.graph.operations import carries_values, find_values, tensor_shape
from ompq.graph.shapes import copy_shape
from ompq.integer.fake_quantizers import limit_infinity
from ompq.integer.requantization import Requantizer, ScaleSource

# Width of what layers, sums and products read.
NARROW_BITS = 8


class IntegerOperation(nn.Module, ABC):
    """An operation on integers, with the float operation that it stands for.

    Args:
        function: What the network computes in its place, in float.
        scale_sources: Source of the scale of each value that it reads.

    Attributes:
        bits: Width of what it gives, sign included.
        enabled: Whether it computes with integers in evaluation.
    """

    scales_channels = False
    bits = 32

    def __init__(self, function: GraphModule, scale_sources: Sequence[ScaleSource]) -> None:
        super().__init__()
        self.function = function
        self.scale_sources = tuple(scale_sources)
        self.enabled = True
        self._numbers: dict[str, Tensor] | None = None

    def forward(self, *values: Tensor) -> Tensor:
        """Compute the operation of its values: in float, or by integers as float64 multiples."""
        if self.training or not self.enabled:
            return self.function(*values)
        with torch.no_grad():
            pairs = zip(values, self.scale_sources, strict=True)
            whole = [torch.round(x.double() / source.get_scale()).long() for x, source in pairs]
            return self.compute(self.compute_numbers(), *whole).double() * self.get_scale()

    def compute_numbers(self) -> dict[str, Tensor]:
        """Return the integers that it computes with, by name; kept until the mode changes.

        Raises:
            ArithmeticError: The float operation gives no numbers for integers that it may read.
        """
        if self._numbers is None or self.training:
            self._numbers = self.write_numbers()
        return self._numbers

    @abstractmethod
    def write_numbers(self) -> dict[str, Tensor]:
        """Compute the integers that it computes with, and `scale`, the float64 scale of results."""

    @abstractmethod
    def compute(self, numbers: Mapping[str, Tensor], *whole: Tensor) -> Tensor:
        """Compute integers (int64) from integers.

        Args:
            numbers: What `compute_numbers` returned.
            whole: Integers of each value, less their zero points.
        """

    def get_scale(self) -> Tensor:
        """Return the scale of what it gives: float64 scalar."""
        return self.compute_numbers()["scale"]

    @property
    def device(self) -> torch.device:
        """Return the device of the scales of what it reads."""
        return self.scale_sources[0].get_scale().device

    def train(self, mode: bool = True) -> IntegerOperation:
        """Switch between training and evaluation; numbers are computed anew after it."""
        self._numbers = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> IntegerOperation:
        """Change the tensors (their device); numbers are computed anew after it."""
        self._numbers = None
        return super()._apply(fn, recurse)


def is_narrow(source: ScaleSource | None, bits: int = NARROW_BITS) -> bool:
    """Tell whether a value consists of integers of at most some bits, no sums of them.

    Args:
        source: Source of the value's scale; None for one in float.
        bits: Width that they may have.
    """
    if source is None or source.count > 1 or source.divisor > 1:
        return False
    module: object = source.module
    return isinstance(module, Requantizer) and module.fake_quantizer.bits <= bits


@dataclass(frozen=True)
class Trial:
    """An operation that is tried on the CPU, with tensors of its own.

    Attributes:
        function: The operation, in float.
        tensors: Its parameters and buffers, by name.
    """

    function: GraphModule
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, function: GraphModule) -> Trial:
        """Return the trial of an operation as it is."""
        held = {**dict(function.named_parameters()), **dict(function.named_buffers())}
        return cls(function, {name: tensor.detach().cpu() for name, tensor in held.items()})

    def vary(self, generator: torch.Generator) -> Trial:
        """Return the trial of an operation whose tensors training has changed, each element."""
        varied = {
            name: tensor * (0.5 + torch.rand(tensor.shape, generator=generator))
            + 0.1 * torch.rand(tensor.shape, generator=generator)
            if tensor.is_floating_point()
            else tensor
            for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=varied)

    @torch.no_grad()
    def run(self, *values: Tensor) -> Tensor:
        """Run the operation in evaluation, in float64, or in float32 where it knows no other."""
        was = self.function.training
        self.function.eval()
        try:
            return self._run([x.double() for x in values])
        except UNSUITED_ERRORS:
            return self._run([x.float() for x in values]).double()
        finally:
            self.function.train(was)

    def _run(self, values: Sequence[Tensor]) -> Tensor:
        kind = values[0].dtype
        tensors = {
            name: (tensor.to(kind) if tensor.is_floating_point() else tensor).clone()
            for name, tensor in self.tensors.items()
        }
        # Copies, for they may be changed in place.
        copies = tuple(x.clone() for x in values)
        result: Tensor = functional_call(self.function, tensors, copies)
        return result


def agree(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    """Tell whether two tensors are equal but for rounding; NaN is equal to itself."""
    both_nan = found.isnan() & expected.isnan()
    near = (found - expected).abs() <= tolerance * (expected.abs() + 1e-6)
    return bool((near | both_nan | (found == expected)).all())


def reduce_shape(*tensors: Tensor) -> tuple[int, ...]:
    """Return the shape that is left of tensors of one shape where they do not change along it."""
    first = tensors[0]
    return tuple(
        1 if all(agree(t, t.narrow(dim, 0, 1).expand_as(t)) for t in tensors) else size
        for dim, size in enumerate(first.shape)
    )


def isolate(node: Node, module: GraphModule) -> GraphModule | None:
    """Make a network of one operation, of the values that it reads.

    What it computes from parameters alone is part of it.

    Args:
        node: Node of the network.
        module: The network; parameters and modules are shared with it.

    Returns:
        The network; None where the operation reads sizes of values, too.
    """
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        if isinstance(called, GraphModule):
            return called
    inputs = find_values(node)
    return _isolate(inputs, [node], module)


def isolate_stretch(source: Node, nodes: Sequence[Node], module: GraphModule) -> GraphModule | None:
    """Make a network of several nodes, of the one value that they read; see `isolate`.

    Args:
        source: Node of the value.
        nodes: Nodes of the network, in execution order; the last has the result.
        module: The network; parameters and modules are shared with it.
    """
    return _isolate([source], nodes, module)


def _isolate(
    inputs: Sequence[Node], nodes: Sequence[Node], module: GraphModule
) -> GraphModule | None:
    graph = Graph()
    made: dict[Node, Node] = {}
    for number, source in enumerate(inputs):
        made[source] = graph.placeholder(f"value_{number}")
        copy_shape(made[source], source)
    for node in nodes:
        if not _copy_constants(node, graph, made):
            return None
        made[node] = graph.node_copy(node, lambda source: made[source])
    graph.output(made[nodes[-1]])
    isolated = GraphModule(module, graph)
    # Its class is its own; the usual call prints what fails, which is an answer where it is tried.
    type(isolated).__call__ = nn.Module.__call__  # type: ignore[method-assign]
    isolated.train(module.training)
    return isolated


class QuantizedConstant(nn.Module):
    """A value that no image changes, such as a class token, as integers of 24 bits.

    Infinity, in masks, is what softmax leaves nothing of.

    Args:
        function: What computes it, of tensors whose sizes alone it reads.
        shapes: Shapes of these tensors for one image.
    """

    scales_channels = False
    bits = 24

    def __init__(self, function: GraphModule, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self._function, self._shapes = (function,), tuple(shapes)
        self.enabled = True
        self._scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Hand the value on; in evaluation as float64 multiples of its scale."""
        if self.training or not self.enabled:
            return x
        with torch.no_grad():
            return self.quantize(x, self.get_scale()).double() * self.get_scale()

    def quantize(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return the integers (int64) of the value at a scale."""
        return torch.round(limit_infinity(x.double()) / scale.to(x.device)).long()

    @torch.no_grad()
    def get_scale(self) -> Tensor:
        """Return the scale, by which the largest magnitude has 23 bits: float64 scalar."""
        if self._scale is None or self.training:
            (function,) = self._function
            device = find_device(function)
            value = function(*(torch.zeros(shape, device=device) for shape in self._shapes))
            largest = limit_infinity(value.double().abs()).max()
            self._scale = torch.where(largest > 0, largest, 1.0) / (2 ** (self.bits - 1) - 1)
        return self._scale

    def train(self, mode: bool = True) -> QuantizedConstant:
        """Switch between training and evaluation; the scale is computed anew after it."""
        self._scale = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> QuantizedConstant:
        """Change the tensors (their device); the scale is computed anew after it."""
        self._scale = None
        return super()._apply(fn, recurse)


def isolate_constant(
    node: Node, module: GraphModule
) -> tuple[GraphModule, list[tuple[int, ...]]] | None:
    """Make a network of what computes a value that no image changes.

    Args:
        node: Node of the value.
        module: The network; its tensors are shared.

    Returns:
        The network, and the shapes of the tensors that it takes, of which it reads sizes alone;
        None where that is not so.
    """
    graph = Graph()
    made: dict[Node, Node] = {}
    shapes: list[tuple[int, ...]] = []

    def copy(own: Node) -> bool:
        if own in made:
            return True
        shape = tensor_shape(own)
        if carries_values(own):
            if shape is None:
                return False
            made[own] = graph.placeholder(f"value_{len(shapes)}")
            shapes.append(shape)
            return True
        if not all(map(copy, own.all_input_nodes)):
            return False
        made[own] = graph.node_copy(own, lambda source: made[source])
        return True

    if not copy(node):
        return None
    graph.output(made[node])
    return GraphModule(module, graph), shapes


def _copy_constants(node: Node, graph: Graph, made: dict[Node, Node]) -> bool:
    """Copy what an operation reads that does not depend on images; tell whether that is all."""
    for source in node.all_input_nodes:
        if source in made:
            continue
        reads_sizes = any(map(carries_values, source.all_input_nodes))
        if source.op == "placeholder" or reads_sizes:
            return False
        if not _copy_constants(source, graph, made):
            return False
        made[source] = graph.node_copy(source, lambda own: made[own])
    return True
