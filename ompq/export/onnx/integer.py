"""The integer network as ONNX: every logit as integer arithmetic computes it, to the bit.

Layers are ConvInteger and MatMulInteger; between them integers are rescaled in float64, which is
exact (ompq/integer/dyadic.py). Slower than quantized kernels, whose rescaling by float32 factors
rounds otherwise now and then, but equal on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import TensorProto
from torch import nn
from torch.fx import Node

from ompq.errors import OmpqError
from ompq.export.arrangements import trace_arrangements, trace_constant
from ompq.export.onnx.builder import BATCH, INPUT_NAME, OUTPUT_NAME, GraphBuilder, image_shape
from ompq.export.onnx.images import ImageWriter
from ompq.export.onnx.integer_layers import write_layer
from ompq.export.onnx.layouts import Arranger
from ompq.export.onnx.operations import look_up, write_operation
from ompq.export.onnx.repeating import repeat
from ompq.export.onnx.whole import Arithmetic, Whole, fits_bytes
from ompq.export.onnx.windows import is_choice, write_choice, write_sum
from ompq.graph.layout import ImageLayout
from ompq.graph.operations import carries_values, operation, tensor_shape
from ompq.integer.execution import export_integers
from ompq.integer.forms import Form, find_form
from ompq.integer.inserted import is_inserted
from ompq.integer.layers import QuantizedLayer
from ompq.integer.network import IntegerNetwork, locate, summarise_operations
from ompq.integer.operations import IntegerOperation, QuantizedConstant
from ompq.integer.pointwise import LookupTable
from ompq.integer.requantization import QuantizedAdd, QuantizedCat, Requantizer


def build_integer_model(
    network: IntegerNetwork, metadata: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """Build a model that computes a network of integers to the bit.

    Its input `images` is float32, n × channels × height × width, normalised; its output `logits`
    float64, equal to those of `IntegerExecution` for any n.

    Args:
        network: Network that runs on integers alone, in evaluation mode, on the CPU.
        metadata: Properties that the model is to carry.

    Raises:
        OmpqError: The network computes in float in part, a layer's sums could exceed 32 bits, or
            an operation has no form in ONNX; names it.
    """
    if network.float_operations:
        found = summarise_operations(network.module, network.float_operations)
        raise OmpqError(
            f"operations of this network are in float: {found}; a model of integers alone cannot "
            "hold them, one that quantizes and dequantizes can"
        )
    writer = _IntegerWriter(network)
    for node in network.module.graph.nodes:
        writer.visit(node)
    return writer.builder.build(
        "integers",
        [(INPUT_NAME, TensorProto.FLOAT, image_shape(network.input_shape))],
        [(OUTPUT_NAME, TensorProto.DOUBLE, writer.output_shape)],
        metadata or {},
    )


class _IntegerWriter:
    """Writes a network of integers node by node."""

    def __init__(self, network: IntegerNetwork) -> None:
        self.network, self.module = network, network.module
        self.builder = GraphBuilder()
        self.arithmetic = Arithmetic(self.builder, export_integers(network))
        self.arranger = Arranger(self.builder, self.module, trace_arrangements(network))
        self.images = ImageWriter(self.builder, self.module, self.arranger)
        self.output_shape: tuple[int | str | None, ...] = ()
        self._values: dict[Node, Whole] = {}
        self._forms: dict[Form, Callable[[Node, Whole], Whole]] = {
            Form.CLIP: self._clip,
            Form.KEEP: lambda node, x: x,
            Form.SCALE: lambda node, x: x,
            Form.POOL: self._arrange,
            Form.ARRANGE: self._arrange,
            Form.SUM: self._sum,
            Form.AVERAGE: self._sum,
        }

    def visit(self, node: Node) -> None:
        """Write what a node computes."""
        if node.op == "placeholder":
            self.images.begin(node, INPUT_NAME)
        elif node.op == "output":
            self._write_logits(node)
        elif node.op == "call_module" and self._write_inserted(node):
            return
        elif node.op.startswith("call_") and self.network.scale_sources.get(node.name) is not None:
            self._write_operation(node)
        elif node.op.startswith("call_") and node.name in self.network.image_maps:
            self.images.write(node)

    def _write_inserted(self, node: Node) -> bool:
        """Write a layer or what the conversion has set in; tell whether the node calls one."""
        called: nn.Module = self.module.get_submodule(str(node.target))
        if not (isinstance(called, QuantizedLayer) or is_inserted(node, self.module)):
            return False
        sources = [source for source in node.args if isinstance(source, Node)]
        first = sources[0]
        if isinstance(called, QuantizedConstant):
            value = self._write_constant(node)
        elif isinstance(called, IntegerOperation):
            if self._is_folded(node, called):
                return True
            read = [self._values[source] for source in sources]
            value = write_operation(self.arithmetic, node, called, read)
        elif isinstance(called, QuantizedLayer):
            value = write_layer(self.arithmetic, node, called, self._values[first])
        elif isinstance(called, QuantizedAdd):
            value = self._combine(node, called)
        elif isinstance(called, Requantizer):
            value = self._requantize(node, first)
        else:
            value = self._values[first]
        self._values[node] = value
        return True

    def _is_folded(self, node: Node, called: IntegerOperation) -> bool:
        """Tell whether everyone who reads a table's results looks them up requantized."""
        readers = [self._find_called(user) for user in node.users]
        return isinstance(called, LookupTable) and all(
            isinstance(reader, Requantizer)
            and not isinstance(reader, QuantizedAdd)
            and fits_bytes(*reader.reach)
            for reader in readers
        )

    def _find_called(self, node: Node) -> nn.Module | None:
        """Return the module that a node calls; None where it calls none."""
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _look_up_requantized(self, node: Node, table: Node) -> Whole:
        """Write a requantization of what is looked up in a table, as a table of bytes."""
        called, path = self._find_called(table), str(node.target)
        entries, bounds = (
            self.arithmetic.read(name) for name in (f"{table.target}.table", f"{path}.bounds")
        )
        assert isinstance(called, LookupTable)
        assert entries is not None
        assert bounds is not None
        x = self._values[table.all_input_nodes[0]]
        folded = self.arithmetic.fold(entries, path).astype(np.uint8)
        return Whole((look_up(self.arithmetic, table, called, x, folded),), -int(bounds[0]))

    def _requantize(self, node: Node, source: Node) -> Whole:
        """Write a requantization: of integers by a dyadic factor, of images by their scale."""
        path, name = str(node.target), node.name
        scale = self.arithmetic.read(f"{path}.scale")
        if scale is not None:
            value = self.arithmetic.cast(self.images.get(source), name)
            value = self.arithmetic.compute("Div", value, scale, name)
            return self.arithmetic.settle(self.builder.add("Round", [value], name), path, name)
        if source not in self._values:
            return self._look_up_requantized(node, source)
        value = self.arithmetic.clip_before(self._widen(source), path, name)
        return self.arithmetic.settle(self.arithmetic.rescale(value, path, name), path, name)

    def _write_constant(self, node: Node) -> Whole:
        """Write integers that no image changes; as often as there are images, if each has them."""
        values, of_two = (trace_constant(self.network, node, images) for images in (1, 2))
        array = values.numpy().astype(np.int32)
        name = self.arithmetic.cast(self.arithmetic.hold(array, node.name), node.name)
        if values.shape != of_two.shape:
            layout = node.meta.get("layout") or ImageLayout()
            name = repeat(self.builder, name, tuple(values.shape), layout, INPUT_NAME)
        return Whole((name,))

    def _combine(self, node: Node, called: QuantizedAdd) -> Whole:
        """Write a sum or a concatenation: its parts rescaled to one scale first."""
        path, name = str(node.target), node.name
        parts = [source for source in node.args if isinstance(source, Node)]
        values = [
            self.arithmetic.rescale(self._widen(part), f"{path}.{number}", name)
            for number, part in enumerate(parts)
        ]
        if not isinstance(called, QuantizedCat):
            return self.arithmetic.settle(self.builder.add("Add", values, name), path, name)
        shape = tensor_shape(node)
        assert shape is not None
        axis = called.dim % len(shape)
        if called.stacks:
            new = self.builder.constant(np.array([axis], dtype=np.int64))
            values = [self.builder.add("Unsqueeze", [value, new], name) for value in values]
        joined = self.builder.add("Concat", values, name, axis=axis)
        return self.arithmetic.settle(joined, path, name)

    def _write_operation(self, node: Node) -> None:
        """Write an operation by the form that it has on integers."""
        form = find_form(node, self.module)
        sources = [source for source in node.all_input_nodes if source in self._values]
        if form is None or len(sources) != 1:
            what = operation(node, self.module)
            raise OmpqError(f"{locate(node)} ({what}) has no form in ONNX on integers alone")
        self._values[node] = self._forms[form](node, self._values[sources[0]])

    def _clip(self, node: Node, x: Whole) -> Whole:
        bounds = self.arithmetic.read(f"{node.name}.clip")
        assert bounds is not None
        return Whole(
            (self.arithmetic.clip(self.arithmetic.widen(x, node.name), bounds, node.name),)
        )

    def _sum(self, node: Node, x: Whole) -> Whole:
        value = self.arithmetic.widen(x, node.name)
        return Whole((write_sum(self.builder, node, self.module, value),))

    def _arrange(self, node: Node, x: Whole) -> Whole:
        """Write what arranges values or chooses among them, which bytes stay bytes by."""
        if is_choice(node, self.module):
            chosen = write_choice(self.builder, node, self.module, x.name, x.zero)
            # The places of the chosen values, which nobody reads, stand beside them.
            return Whole((chosen,) * (1 if tensor_shape(node) else 2), x.zero_point)
        return Whole(tuple(self.arranger.arrange(node, x.names, x.zero)), x.zero_point)

    def _widen(self, source: Node) -> str:
        return self.arithmetic.widen(self._values[source], source.name)

    def _write_logits(self, node: Node) -> None:
        """Write the output: the last integers times their scale."""
        source = node.all_input_nodes[0]
        scale, shape = self.arithmetic.read("output.scale"), tensor_shape(source)
        if scale is None or shape is None or not carries_values(source):
            raise OmpqError(f"{locate(source)} gives no integers; the network has no quantized end")
        logits = self.arithmetic.compute("Mul", self._widen(source), scale, OUTPUT_NAME)
        self.builder.expose(logits)
        layout = source.meta.get("layout") or ImageLayout()
        self.output_shape = tuple(
            (BATCH if layout.rows == 1 else None) if dim == layout.dim else size
            for dim, size in enumerate(shape)
        )
