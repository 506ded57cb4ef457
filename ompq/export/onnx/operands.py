"""What the ONNX form of an operation is written from: arguments, tensors as names in the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from ompq.errors import OmpqError
from ompq.export.onnx.builder import GraphBuilder
from ompq.graph.arguments import read_arguments
from ompq.graph.layout import ImageLayout
from ompq.graph.operations import operation, tensor_shape
from ompq.integer.network import locate


class NoForm(OmpqError):
    """An operation has no form in ONNX, or none with these arguments."""


@dataclass(frozen=True)
class Operand:
    """A tensor that an operation reads.

    Attributes:
        name: Its name in the graph.
        shape: Its shape for one image.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Return how many dimensions it has."""
        return len(self.shape)


class Call:
    """An operation of a traced network that is written in ONNX.

    Args:
        builder: Graph that it is added to.
        node: Node that calls a module, a function or a method.
        module: Network that the node belongs to, with recorded shapes.
        read: Function that gives the operand of a node whose value is a tensor.

    Attributes:
        arguments: Arguments by torch's names, tensors as `Operand`.
    """

    def __init__(
        self,
        builder: GraphBuilder,
        node: Node,
        module: GraphModule,
        read: Callable[[Node], Operand],
    ) -> None:
        self.builder, self.node, self.module = builder, node, module
        self._read = read
        self._given = read_arguments(node, module)
        self.arguments: dict[str, Any] = {
            key: self.resolve(value) for key, value in self._given.items()
        }

    @property
    def operation(self) -> str:
        """Return the name of the operation, as `ompq.graph.operations.operation` gives it."""
        return operation(self.node, self.module)

    @property
    def gives_tensor(self) -> bool:
        """Tell whether the result is a single tensor."""
        return tensor_shape(self.node) is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the result for one image."""
        shape = tensor_shape(self.node)
        if shape is None:
            raise self.refuse("it gives several tensors")
        return shape

    @property
    def layout(self) -> ImageLayout | None:
        """Return where the images are in the result; None where it does not depend on them."""
        layout: ImageLayout | None = self.node.meta.get("layout", ImageLayout())
        return layout

    @property
    def called(self) -> nn.Module:
        """Return the module that the node calls; an empty one where it calls a function."""
        if self.node.op == "call_module":
            return self.module.get_submodule(str(self.node.target))
        return nn.Identity()

    @property
    def source(self) -> Operand:
        """Return the first tensor that the operation reads."""
        return self.read("input")

    def read(self, argument: str) -> Operand:
        """Return an argument as a tensor.

        Raises:
            OmpqError: It is not given, or is no tensor.
        """
        return self.to_operand(self.arguments.get(argument), argument)

    def to_operand(self, given: Any, argument: str = "input") -> Operand:
        """Return what an argument was resolved to as a tensor; refuse what is none."""
        if isinstance(given, Operand):
            return given
        if isinstance(given, Tensor | int | float):
            return self.put(given)
        raise self.refuse(f"its argument `{argument}` is of type {type(given).__name__}")

    def read_optional(self, argument: str) -> Operand | None:
        """Return an argument as a tensor; None where it is not given."""
        return None if self.arguments.get(argument) is None else self.read(argument)

    def get(self, argument: str, default: Any) -> Any:
        """Return an argument that is no tensor, or its default.

        Raises:
            OmpqError: It depends on values of tensors.
        """
        given = self.arguments.get(argument)
        if isinstance(given, Operand):
            raise self.refuse(f"its argument `{argument}` depends on the images")
        return default if given is None else given

    def holds_booleans(self, argument: str) -> bool:
        """Tell whether an argument is a tensor of truth values."""
        given = self._given.get(argument)
        if isinstance(given, Node):
            return given.meta.get("dtype") is torch.bool
        return isinstance(given, Tensor) and given.dtype is torch.bool

    def holds_floats(self, argument: str) -> bool:
        """Tell whether an argument is a tensor of floats, or a number."""
        given = self._given.get(argument)
        kind = given.meta.get("dtype") if isinstance(given, Node) else getattr(given, "dtype", None)
        return kind is None or bool(kind.is_floating_point)

    def put(self, value: Tensor | NDArray[Any] | float) -> Operand:
        """Put a constant into the graph; floats become float32."""
        array = to_array(value)
        return Operand(self.builder.constant(array), array.shape)

    def put_sizes(self, *sizes: int) -> str:
        """Put a row of sizes or dimensions, int64, into the graph; return its name."""
        return self.builder.constant(np.array(sizes, dtype=np.int64))

    def add(self, kind: str, *inputs: Operand | str | float | None, **attributes: Any) -> str:
        """Add an operator that is named after the node.

        Args:
            kind: Name of the operator in ONNX.
            inputs: Its inputs: operands, names, numbers (float32); None for one left out.
            attributes: Its attributes.

        Returns:
            The name of its output.
        """
        return self.builder.add(kind, self._name_all(inputs), self.node.name, **attributes)

    def add_many(
        self, kind: str, count: int, *inputs: Operand | str | float | None, **attributes: Any
    ) -> list[str]:
        """Add an operator with several outputs, as `add`; return their names."""
        names = self._name_all(inputs)
        return self.builder.add_many(kind, names, count, self.node.name, **attributes)

    def target_shape(self, shape: tuple[int, ...], layout: ImageLayout | None) -> str:
        """Put the target of a Reshape into the graph, for any number of images.

        Args:
            shape: Shape for one image.
            layout: Where the images are in it; None where it does not depend on them.
        """
        dynamic = None if layout is None else layout.dim
        return self.put_sizes(*(-1 if dim == dynamic else size for dim, size in enumerate(shape)))

    def refuse(self, reason: str) -> NoForm:
        """Return the error of an operation that has no form in ONNX."""
        return NoForm(f"{locate(self.node)} ({self.operation}) has no form in ONNX: {reason}")

    def resolve(self, value: Any) -> Any:
        """Replace nodes in a value by the operands that they are."""
        if isinstance(value, Node):
            return self._read(value)
        if isinstance(value, tuple | list):
            return type(value)(self.resolve(part) for part in value)
        return value

    def _name_all(self, inputs: tuple[Operand | str | float | None, ...]) -> list[str]:
        names = []
        for given in inputs:
            if isinstance(given, Operand):
                names.append(given.name)
            elif isinstance(given, str) or given is None:
                names.append(given or "")
            else:
                names.append(self.put(float(given)).name)
        while names and not names[-1]:
            names.pop()
        return names


def to_array(value: Tensor | NDArray[Any] | float) -> NDArray[Any]:
    """Return a constant as an array, floats as float32.

    >>> to_array(torch.ones(2, dtype=torch.float64)).dtype
    dtype('float32')
    """
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    numeric = isinstance(value, int) and not isinstance(value, bool)
    return array.astype(np.float32) if array.dtype.kind == "f" or numeric else array
