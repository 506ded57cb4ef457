"""An ONNX graph built operator by operator, with readable names and shared constants."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import ompq
from ompq.errors import OmpqError

OPSET = 21
# The first version of the format that opset 21 belongs to: older runtimes read no newer one.
IR_VERSION = 10
# What every exported network calls its input (float32, n × channels × height × width, normalised),
# its output, and the dimension of its images.
INPUT_NAME = "images"
OUTPUT_NAME = "logits"
BATCH = "batch"

# Runtimes compute these in float, or do not load them at all.
_REFUSED_TYPES = frozenset(
    number
    for name, number in TensorProto.DataType.items()
    if name in ("INT2", "UINT2", "INT4", "UINT4")
)
# Larger constants are hardly ever equal, and comparing them costs memory.
_LARGEST_SHARED = 64

Array = NDArray[Any]
# Name, element type (of `onnx.TensorProto`) and shape of an input or output of a graph; dimensions
# that are names or None are dynamic.
ValueInfo = tuple[str, int, Sequence[int | str | None]]


class GraphBuilder:
    """Collects the operators and constants of an ONNX graph.

    Values are referred to by their names, as ONNX does; every name is given once.

    >>> builder = GraphBuilder()
    >>> builder.add("Add", ["images", builder.constant(np.float32(1))], "conv1")
    'conv1'
    >>> builder.add("Relu", ["conv1"], "conv1")
    'conv1_1'
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, Array] = {}
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._names: set[str] = {INPUT_NAME, OUTPUT_NAME}
        self._counts: dict[str, int] = {}

    def constant(self, value: Array | np.generic, name: str = "") -> str:
        """Add a constant; a small one that is there already is used again.

        Args:
            value: Array or NumPy number of any shape, whose type becomes the constant's.
            name: Name that it should have; another is given where that one is taken.

        Returns:
            The constant's name.
        """
        array = np.array(value, order="C")
        key = (
            array.dtype.str,
            array.shape,
            array.tobytes() if array.size <= _LARGEST_SHARED else b"",
        )
        shares = array.size <= _LARGEST_SHARED and array.dtype.kind in "biuf"
        if shares and key in self._shared:
            return self._shared[key]
        if helper.np_dtype_to_tensor_dtype(array.dtype) in _REFUSED_TYPES:
            raise TypeError(f"a constant of type {array.dtype}, which runtimes do not compute with")
        given = self._name(name or "constant")
        self._constants[given] = array
        if shares:
            self._shared[key] = given
        return given

    def value(self, name: str) -> Array:
        """Return the array that a constant holds.

        Args:
            name: Name that `constant` gave.

        Raises:
            KeyError: No constant has that name.
        """
        return self._constants[name]

    def is_constant(self, name: str) -> bool:
        """Tell whether a name is that of a constant."""
        return name in self._constants

    def add(self, kind: str, inputs: Sequence[str], name: str = "", **attributes: Any) -> str:
        """Add an operator with one output.

        Args:
            kind: Name of the operator in ONNX.
            inputs: Names of its inputs; an empty one where an optional input is left out.
            name: Name that node and output should have, mostly that of the network's node; a
                number is put behind it where it is taken.
            attributes: Attributes of the operator, as `onnx.helper.make_node` takes them.

        Returns:
            The name of the output.
        """
        return self.add_many(kind, inputs, 1, name, **attributes)[0]

    def add_many(
        self, kind: str, inputs: Sequence[str], count: int, name: str = "", **attributes: Any
    ) -> list[str]:
        """Add an operator with several outputs.

        Args:
            kind: Name of the operator in ONNX.
            inputs: Names of its inputs; an empty one where an optional input is left out.
            count: Number of its outputs.
            name: Name that the node should have, and its outputs.
            attributes: Attributes of the operator, as `onnx.helper.make_node` takes them.

        Returns:
            The names of the outputs.
        """
        outputs = [self._name(name or kind.lower()) for _ in range(count)]
        self._append(kind, inputs, outputs, attributes)
        return outputs

    def expose(self, value: str, name: str = OUTPUT_NAME) -> None:
        """Give a value the name of an output of the graph.

        Args:
            value: Name of the value, a constant's too.
            name: Name of the output.
        """
        self._names.add(name)
        self._append("Identity", [value], [name], {})

    def build(
        self,
        name: str,
        inputs: Iterable[ValueInfo],
        outputs: Iterable[ValueInfo],
        metadata: Mapping[str, str],
    ) -> onnx.ModelProto:
        """Put the graph into a model, and check it.

        Args:
            name: Name of the graph.
            inputs: Name, element type and shape of each input.
            outputs: Name, element type and shape of each output; see `expose`.
            metadata: Properties of the model, for whoever reads it.

        Returns:
            The model: opset `OPSET`, format `IR_VERSION`, checked in full.

        Raises:
            TypeError: A value is of a type below 8 bits.
            onnx.checker.ValidationError: The graph is no valid one.
        """
        used = {source for node in self._nodes for source in node.input}
        initializers = [
            numpy_helper.from_array(array, given)
            for given, array in self._constants.items()
            if given in used
        ]
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info(*info) for info in inputs],
            [helper.make_tensor_value_info(*info) for info in outputs],
            initializers,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="ompq",
            producer_version=ompq.__version__,
        )
        helper.set_model_props(model, dict(metadata))
        try:
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            reason = str(error).strip().split("\n")[0]
            raise OmpqError(
                f"this network has no valid form in ONNX: {reason}; please report this network"
            ) from error
        return model

    def _append(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], attributes: dict[str, Any]
    ) -> None:
        if kind == "Cast" and attributes.get("to") in _REFUSED_TYPES:
            raise TypeError("a cast to a type that runtimes do not compute with")
        node = helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], **attributes)
        self._nodes.append(node)

    def _name(self, wanted: str) -> str:
        """Choose a name that nothing has, close to the one wanted."""
        stem = re.sub(r"[^\w.]+", "_", wanted)
        name = stem
        while name in self._names:
            self._counts[stem] = self._counts.get(stem, 0) + 1
            name = f"{stem}_{self._counts[stem]}"
        self._names.add(name)
        return name


def image_shape(channels_and_size: Sequence[int]) -> tuple[int | str, ...]:
    """Return the shape of the input of a graph, whose number of images is dynamic.

    Args:
        channels_and_size: Channels, height and width.

    >>> image_shape((3, 32, 32))
    ('batch', 3, 32, 32)
    """
    return (BATCH, *channels_and_size)
