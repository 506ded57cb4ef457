"""What a network does to its images before they become integers: in float32, value by value.

Normalised by the network itself, cut into pieces or arranged otherwise, images are computed as
PyTorch computes them, operation by operation, since their integers must be the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor
from torch.fx import GraphModule, Node

from ompq.errors import OmpqError
from ompq.export.arrangements import run_up_to
from ompq.export.onnx.builder import GraphBuilder
from ompq.export.onnx.layouts import Arranger
from ompq.export.onnx.repeating import repeat
from ompq.export.onnx.survey import are_equal, check_repeats
from ompq.graph.arguments import read_arguments
from ompq.graph.operations import (
    ADDITIONS,
    PRODUCTS,
    QUOTIENTS,
    carries_values,
    find_values,
    operation,
    tensor_shape,
)
from ompq.integer.forms import Form, find_form
from ompq.integer.network import locate

_TYPES = {torch.float32: TensorProto.FLOAT, torch.float64: TensorProto.DOUBLE}
_ARRAY_TYPES: dict[Any, type[np.floating[Any]]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
}
_ARITHMETIC = {
    **dict.fromkeys(ADDITIONS, "Add"),
    **dict.fromkeys(PRODUCTS, "Mul"),
    **dict.fromkeys(QUOTIENTS, "Div"),
    **dict.fromkeys("sub isub subtract rsub".split(), "Sub"),
}
_CONCATENATIONS = frozenset("cat concat concatenate stack".split())


class ImageWriter:
    """Writes the operations of a network whose values are affine maps of the images.

    Args:
        builder: Graph that they are added to.
        module: Network whose operations they are, on the CPU.
        arranger: Writes the operations that arrange values.
    """

    def __init__(self, builder: GraphBuilder, module: GraphModule, arranger: Arranger) -> None:
        self.builder, self.module, self.arranger = builder, module, arranger
        self._values: dict[Node, list[str]] = {}

    def begin(self, images: Node, name: str) -> None:
        """Name the input of the graph that the images are."""
        self._images = images
        self._values[images] = [name]

    def get(self, node: Node) -> str:
        """Return the name of a node's value."""
        return self._values[node][0]

    def write(self, node: Node) -> None:
        """Write an operation on images.

        Raises:
            OmpqError: It is none that ONNX Runtime computes as PyTorch does, to the bit.
        """
        name = operation(node, self.module)
        form = find_form(node, self.module)
        sources = find_values(node)
        if len(sources) == 1 and form is Form.KEEP:
            self._values[node] = [self._cast(value, node) for value in self._values[sources[0]]]
        elif len(sources) == 1 and form is Form.ARRANGE:
            zero = self._number_type(node)(0)
            read = self._values[sources[0]]
            self._values[node] = self.arranger.arrange(node, read, zero)
        elif name in _CONCATENATIONS:
            self._values[node] = [self._concatenate(node, name == "stack")]
        elif name in _ARITHMETIC:
            self._values[node] = [self._compute(node, _ARITHMETIC[name])]
        else:
            raise self._refuse(node)

    def _compute(self, node: Node, kind: str) -> str:
        """Write arithmetic with a number or a constant tensor."""
        arguments = read_arguments(node, self.module)
        if arguments.get("alpha", 1) != 1 or arguments.get("rounding_mode") is not None:
            raise self._refuse(node)
        given = [arguments.get("input"), arguments.get("other")]
        if operation(node, self.module) == "rsub":
            given.reverse()
        return self.builder.add(kind, [self._read(part, node) for part in given], node.name)

    def _concatenate(self, node: Node, stacks: bool) -> str:
        arguments = read_arguments(node, self.module)
        parts, dim, shape = arguments.get("tensors"), arguments.get("dim", 0), tensor_shape(node)
        if not isinstance(parts, tuple | list) or not isinstance(dim, int) or shape is None:
            raise self._refuse(node)
        axis = dim % len(shape)
        names = [self._read(part, node) for part in parts]
        if stacks:
            front = self.builder.constant(np.array([axis], dtype=np.int64))
            names = [self.builder.add("Unsqueeze", [name, front], node.name) for name in names]
        return self.builder.add("Concat", names, node.name, axis=axis)

    def _read(self, part: Any, node: Node) -> str:
        """Return the name of what an operation reads, in the type that it computes with."""
        if isinstance(part, Node) and part in self._values:
            return self._cast(self.get(part), node, part)
        if isinstance(part, Node):
            return self._put_constant(part, node)
        return self._put_number(part, node)

    def _cast(self, value: str, node: Node, source: Node | None = None) -> str:
        """Write a cast to the type that an operation computes with, where it is another."""
        before = (source or node.all_input_nodes[0]).meta.get("dtype", torch.float32)
        after = node.meta.get("dtype", torch.float32)
        if before == after:
            return value
        if after not in _TYPES or before not in _TYPES:
            raise self._refuse(node)
        return self.builder.add("Cast", [value], node.name, to=_TYPES[after])

    def _number_type(self, node: Node) -> type[np.floating[Any]]:
        kind = node.meta.get("dtype", torch.float32)
        if kind not in _ARRAY_TYPES:
            raise self._refuse(node)
        return _ARRAY_TYPES[kind]

    def _put_constant(self, node: Node, reader: Node) -> str:
        """Put what a network makes without images into the graph, as often as there are images."""
        if carries_values(node):
            raise self._refuse(reader)
        shape = tensor_shape(self._images)
        assert shape is not None
        value, of_two = (
            run_up_to(self.module, node, torch.zeros(count, *shape[1:])) for count in (1, 2)
        )
        name = self._put_number(value, reader)
        if are_equal(value, of_two):
            return name
        if not isinstance(value, Tensor):
            raise self._refuse(reader)
        check_repeats(node, value, of_two)
        return repeat(
            self.builder, name, tuple(value.shape), node.meta["layout"], self.get(self._images)
        )

    def _put_number(self, value: Any, reader: Node) -> str:
        """Put a number or a tensor into the graph, in the type that an operation computes with."""
        if isinstance(value, Tensor):
            array = value.detach().cpu().numpy()
            return self.builder.constant(array.astype(self._number_type(reader)))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._refuse(reader)
        return self.builder.constant(self._number_type(reader)(value))

    def _refuse(self, node: Node) -> OmpqError:
        return OmpqError(
            f"{locate(node)} ({operation(node, self.module)}) changes the images as ONNX does not "
            "compute to the bit; normalise them before the network"
        )
