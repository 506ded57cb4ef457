"""A walk over a traced network that writes its operations, in float, into an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor
from torch.fx import GraphModule, Node

from ompq.errors import UNSUITED_ERRORS
from ompq.export.onnx.builder import GraphBuilder
from ompq.export.onnx.inside import Untraceable, find_constant, open_node, trace_inside
from ompq.export.onnx.layouts import Arranger
from ompq.export.onnx.operands import Call, NoForm, Operand, to_array
from ompq.export.onnx.repeating import repeat
from ompq.export.onnx.survey import Survey, survey
from ompq.export.onnx.torch_exporter import export_by_torch
from ompq.export.onnx.writers import WRITERS
from ompq.graph.operations import carries_values, operation, tensor_shape
from ompq.integer.forms import Form, find_form, find_tensors

_PADS = frozenset("pad constantpad2d zeropad2d same_padding".split())


@dataclass(frozen=True)
class Levels:
    """A value in integers: what stands between quantizing and dequantizing.

    Attributes:
        integers: Name of the integers, uint8.
        scale: Name of their scale, float32 scalar.
        zero_point: Name of their zero point, uint8 scalar.
    """

    integers: str
    scale: str
    zero_point: str


# The name of a value in float; its integers; those of a tuple.
Value: TypeAlias = str | Levels | list[str]


class Walker:
    """Writes the nodes of a traced network into a graph, one after the other.

    Args:
        builder: Graph that they are added to.
        module: Network, with recorded shapes.
        survey: Its constants and arrangements.
        images: Name of a value in the graph whose first dimension counts the images.

    Attributes:
        values: What has been written so far, by node.
    """

    def __init__(
        self, builder: GraphBuilder, module: GraphModule, survey: Survey, images: str
    ) -> None:
        self.builder, self.module, self.survey, self.images = builder, module, survey, images
        self.values: dict[Node, Value] = {}
        self._arranger = Arranger(builder, module, survey.places)
        self._dequantized: dict[Levels, str] = {}

    def run(self, inputs: Sequence[str]) -> str:
        """Write the whole network; return the name of its output, in float.

        Args:
            inputs: Names of what it takes, in order.
        """
        given = iter(inputs)
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = next(given)
            elif node.op == "output":
                return self.read(node.all_input_nodes[0])
            elif node.op != "get_attr" and carries_values(node):
                self.values[node] = self.write(node)
        raise ValueError("a network without an output")

    def write(self, node: Node) -> Value:
        """Write a node whose value depends on the images; return its value."""
        if operation(node, self.module) in ("getitem", "getattr"):
            source = node.all_input_nodes[0]
            piece = self._find_piece(node, self.values.get(source))
            if piece is not None:
                return piece
        form = find_form(node, self.module)
        if form is Form.KEEP:
            return self.values[self.find_source(node)]
        if form is Form.ARRANGE and node.name in self.survey.places:
            return self._arrange(node)
        return self.write_float(node)

    def write_float(self, node: Node) -> Value:
        """Write an operation in float, by the table of writers or by what it is made of."""
        call = self.start_call(node)
        writer = WRITERS.get(call.operation)
        if writer is not None:
            try:
                return writer(call)
            except NoForm as error:
                return self._write_by_torch(call, error)
            except UNSUITED_ERRORS as error:
                line = str(error).split("\n")[0]
                refused = call.refuse(f"its arguments were not foreseen ({line})")
                return self._write_by_torch(call, refused)
        try:
            return self._write_inside(call)
        except NoForm as error:
            return self._write_by_torch(call, error)

    def _write_inside(self, call: Call) -> str:
        """Write what a module or function is made of."""
        try:
            traced = trace_inside(call.node, self.module, self.survey)
        except Untraceable as error:
            raise call.refuse(
                f"nobody knows how to write it, nor what it is made of ({error})"
            ) from error
        return self.write_opened(traced.module, traced.inputs)

    def write_opened(self, module: GraphModule, inputs: Sequence[Node]) -> str:
        """Write a network that stands in the place of a node.

        Args:
            module: The network, with recorded shapes.
            inputs: Nodes of what it takes, in order.
        """
        inner = Walker(self.builder, module, survey(module), self.images)
        return inner.run([self.read(node) for node in inputs])

    def _write_by_torch(self, call: Call, reason: NoForm) -> Value:
        """Let PyTorch's own exporter write what nobody else can."""
        opened = open_node(call.node, self.module, self.survey)
        names = [self.read(node) for node in opened.inputs]
        return export_by_torch(self.builder, opened, names, reason)

    def find_source(self, node: Node) -> Node:
        """Find the first node whose values an operation reads."""
        return next(source for source in node.all_input_nodes if carries_values(source))

    def read(self, node: Node) -> str:
        """Return the name of a node's value in float; write it where it is not there yet."""
        value = self.values.get(node)
        if value is None:
            value = self.values[node] = self._put_constant(node)
        if isinstance(value, list):
            raise self.start_call(node).refuse("its tensors are read together")
        return self.dequantize(value)

    def read_operand(self, node: Node) -> Operand:
        """Return the value of a node as an operand."""
        constant = self._find_constant(node)
        if isinstance(constant, Tensor) and not self._grows(node):
            array = to_array(constant)
            return Operand(self.builder.constant(array, node.name), array.shape)
        return Operand(self.read(node), tensor_shape(node) or ())

    def dequantize(self, value: Value) -> str:
        """Return the name of a tensor in float."""
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            raise TypeError("several tensors where there should be one")
        if value not in self._dequantized:
            inputs = [value.integers, value.scale, value.zero_point]
            name = self.builder.add("DequantizeLinear", inputs, value.integers)
            self._dequantized[value] = name
        return self._dequantized[value]

    def start_call(self, node: Node) -> Call:
        """Return a node as a call whose operators are to be written."""
        return Call(self.builder, node, self.module, self.read_operand)

    def _find_piece(self, node: Node, taken: Value | None) -> str | None:
        """Return the piece of a tuple that a node takes; None where it does anything else."""
        if not isinstance(taken, list) or len(node.args) < 2:
            return None
        index = {"values": 0, "indices": 1}.get(str(node.args[1]), node.args[1])
        return taken[index] if isinstance(index, int) else None

    def _arrange(self, node: Node) -> Value:
        """Write an operation that only arranges values: of integers, if it puts no zeros in."""
        value = self.values[self.find_source(node)]
        pads = any(bool((part < 0).any()) for part in self.survey.places[node.name])
        if isinstance(value, Levels) and not pads and tensor_shape(node) is not None:
            (integers,) = self._arranger.arrange(node, [value.integers], np.uint8(0))
            return Levels(integers, value.scale, value.zero_point)
        names = value if isinstance(value, list) else [self.read(self.find_source(node))]
        arranged = self._arranger.arrange(node, names, np.float32(0))
        return arranged[0] if tensor_shape(node) is not None else arranged

    def _find_constant(self, node: Node) -> Any:
        """Return the value of a node that does not depend on images; None where it does."""
        return find_constant(node, self.module, self.survey)

    def _grows(self, node: Node) -> bool:
        return node.name in self.survey.growing

    def _put_constant(self, node: Node) -> Value:
        """Put what does not depend on images' values into the graph; repeat what each image has."""
        value = self._find_constant(node)
        if isinstance(value, tuple | list):
            tensors = find_tensors(value)
            return [self.builder.constant(to_array(tensor), node.name) for tensor in tensors]
        if not isinstance(value, Tensor):
            raise self.start_call(node).refuse("its value is no tensor")
        name = self.builder.constant(to_array(value), node.name)
        if not self._grows(node):
            return name
        return repeat(self.builder, name, tuple(value.shape), node.meta["layout"], self.images)
