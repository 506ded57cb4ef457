"""The fast ONNX form of an integer network: quantize, compute, dequantize, as runtimes fuse it.

Layers stand between dequantizing and quantizing, with int8 weights and int32 biases: runtimes
compute them by int8 kernels. Activations below 8 bits, and those that an activation clips, are
uint8 with an integer Clip. What a runtime computes differs from the integer network by the float
factors of its rescaling, which now and then round to the integer beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import nn
from torch.fx import Node

from ompq.export.onnx.builder import BATCH, INPUT_NAME, OUTPUT_NAME, GraphBuilder, image_shape
from ompq.export.onnx.compaction import compact_model
from ompq.export.onnx.floats import add_clip, add_concatenation
from ompq.export.onnx.orders import find_border
from ompq.export.onnx.survey import survey
from ompq.export.onnx.walker import Levels, Value, Walker
from ompq.export.onnx.weights import AddedWeight, add_weight, fits_int8
from ompq.graph.arguments import read_clip_bounds
from ompq.graph.operations import CLIPS, operation, tensor_shape
from ompq.integer.forms import Form, find_form
from ompq.integer.layers import QuantizedLayer
from ompq.integer.network import IntegerNetwork
from ompq.integer.operations import IntegerOperation
from ompq.integer.requantization import (
    Dequantizer,
    OutputRounding,
    QuantizedAdd,
    QuantizedCat,
    Requantizer,
)

# The widest integers that int8 kernels read.
_LEVEL_BITS = 8
_LARGEST_LEVEL = 2**_LEVEL_BITS - 1
# What PyTorch calls the ways to pad, in ONNX.
_PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
# Zeros above, to the left, below and to the right, as ONNX counts them.
Pads = tuple[int, int, int, int]


def build_quantized_model(
    network: IntegerNetwork, packed: bool = False, metadata: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """Build the fast ONNX form of an integer network.

    Args:
        network: Network of integers, in evaluation mode, on the CPU.
        packed: Whether weights are stored as bits, which the runtime unpacks when it loads the
            file; the outputs are those of the plain form.
        metadata: Properties of the model, for whoever reads it.

    Returns:
        The model, for any number of images: `images` (float32, n × channels × height × width,
        normalised) to `logits` (float32).

    Raises:
        OmpqError: An operation has no form in ONNX (names it, and its place).
    """
    builder = GraphBuilder()
    writer = _QuantizedWalker(builder, network, packed)
    with torch.inference_mode():
        builder.expose(writer.run([INPUT_NAME]))
    output = next(node for node in network.module.graph.nodes if node.op == "output")
    shape = tensor_shape(output.all_input_nodes[0]) or ()
    model = builder.build(
        "ompq",
        [(INPUT_NAME, TensorProto.FLOAT, image_shape(network.input_shape))],
        [(OUTPUT_NAME, TensorProto.FLOAT, (BATCH, *shape[1:]))],
        metadata or {},
    )
    if packed:
        compact_model(model)
    return model


def find_uint8_weights(network: IntegerNetwork) -> list[str]:
    """Find the layers whose weights are asymmetric integers of 8 bits.

    They are uint8 with a zero point per channel, which ONNX Runtime 1.32 computes; 1.20 and 1.23
    load the file, but fail when they run it (onnxruntime#28447).

    Args:
        network: Network of integers, in evaluation mode.

    Returns:
        Names of the layers.
    """
    return [
        name
        for name, layer in network.layers().items()
        if not fits_int8(layer.compute_integers().weight.numpy())
    ]


class _QuantizedWalker(Walker):
    """Writes an integer network: what the conversion has set into it, and the rest in float.

    Args:
        builder: Graph that it is added to.
        network: Network of integers.
        packed: Whether weights are packed.
    """

    def __init__(self, builder: GraphBuilder, network: IntegerNetwork, packed: bool) -> None:
        super().__init__(builder, network.module, survey(network.module), INPUT_NAME)
        self.network, self.packed = network, packed
        self._weights: dict[int, tuple[torch.Tensor, AddedWeight]] = {}
        self._pads: dict[Node, Pads] = {}
        self._clips: dict[Node, tuple[float, float]] = {}

    def write(self, node: Node) -> Value:
        """Write a node whose value depends on the images."""
        if node.op == "call_module":
            module = self.module.get_submodule(str(node.target))
            if isinstance(module, QuantizedLayer):
                return self._write_layer(node, module)
            if isinstance(module, OutputRounding | Dequantizer):
                return self.values[node.all_input_nodes[0]]
            if isinstance(module, Requantizer):
                return self._write_requantizer(node, module)
            if isinstance(module, IntegerOperation):
                return self.write_opened(module.function, node.all_input_nodes)
        if self._is_put_off(node):
            return self.values[self.find_source(node)]
        return super().write(node)

    def _is_put_off(self, node: Node) -> bool:
        """Tell whether those who read a node's value do what it does; note it for them."""
        pads = self._find_zero_pads(node)
        if pads is not None and all(map(self._takes_pads, node.users)):
            self._pads[node] = pads
        elif operation(node, self.module) in CLIPS and all(map(self._takes_clip, node.users)):
            bounds = read_clip_bounds(node, self.module)
            if bounds is None or not bounds[0] <= 0 <= bounds[1]:
                return False
            self._clips[node] = bounds
        return node in self._pads or node in self._clips

    def _write_requantizer(self, node: Node, requantizer: Requantizer) -> Value:
        """Write a quantization, or the sum or concatenation that it is of."""
        clip = requantizer.clip
        if isinstance(requantizer, QuantizedAdd):
            value: Value = self._combine(node, requantizer)
        else:
            value = self.values[node.all_input_nodes[0]]
        if requantizer.fake_quantizer.bits <= _LEVEL_BITS:
            return self._quantize(node, self.dequantize(value), requantizer)
        # Integers of 16 bits are finer than the runtime's: the value stays what it is.
        if clip is None:
            return value
        return add_clip(self.start_call(node), self.dequantize(value), clip)

    def _combine(self, node: Node, combination: QuantizedAdd) -> str:
        call = self.start_call(node)
        parts = [self.read_operand(part) for part in node.args if isinstance(part, Node)]
        if isinstance(combination, QuantizedCat):
            return add_concatenation(call, parts, combination.dim, combination.stacks)
        return call.add("Add", *parts)

    def _quantize(self, node: Node, value: str, requantizer: Requantizer) -> Levels:
        """Quantize a value to integers from 0 on."""
        lowest, highest = requantizer.reach
        scale = np.float32(requantizer.get_scale().item())
        bounds = requantizer.clip or self._find_clip(node)
        # Rounding is monotone: to clip the integers is to clip what they are rounded from.
        least, most = (
            limit if abs(bound) == inf else choose(limit, round(bound / float(scale)))
            for limit, bound, choose in ((lowest, bounds[0], max), (highest, bounds[1], min))
        )
        names = (
            self.builder.constant(scale, f"{node.name}.scale"),
            self.builder.constant(np.uint8(-lowest), f"{node.name}.zero"),
        )
        integers = self.builder.add("QuantizeLinear", [value, *names], node.name)
        limits = [
            self.builder.constant(np.uint8(limit - lowest)) if limit - lowest != end else ""
            for limit, end in ((least, 0), (most, _LARGEST_LEVEL))
        ]
        if any(limits):
            inputs = [integers, *(limits if limits[1] else limits[:1])]
            integers = self.builder.add("Clip", inputs, node.name)
        return Levels(integers, *names)

    def _write_layer(self, node: Node, layer: QuantizedLayer) -> str:
        name, source = str(node.target), node.all_input_nodes[0]
        weight = self._add_weight(name, layer)
        inputs = [self.read(source), weight.value, *self._add_bias(name, layer, weight)]
        if isinstance(layer.layer, nn.Linear):
            return self._add_linear(node, inputs)
        return self._add_convolution(node, layer.layer, inputs)

    def _add_weight(self, name: str, layer: QuantizedLayer) -> AddedWeight:
        """Add a layer's weight, or find it where another layer has it too."""
        whole = layer.compute_integers().weight
        key = id(layer.layer.weight)
        if key not in self._weights or not torch.equal(self._weights[key][0], whole):
            self._weights[key] = whole, add_weight(self.builder, name, layer, self.packed)
        return self._weights[key][1]

    def _add_bias(self, name: str, layer: QuantizedLayer, weight: AddedWeight) -> list[str]:
        """Add a layer's bias, int32 at the scale of its sums; nothing where it has none."""
        whole = layer.compute_integers().bias
        if layer.has_float_bias:
            bias = layer.fold()[1]
            assert bias is not None
            return [self.builder.constant(bias.float().numpy(), f"{name}.bias")]
        if whole is None:
            return []
        step = self.builder.constant(np.float32(layer.source.get_scale().item()))
        integers = self.builder.constant(whole.numpy().astype(np.int32), f"{name}.bias")
        steps = self.builder.value(step) * self.builder.value(weight.scale)
        if self.packed and steps.size > 1:
            scale = self.builder.add("Mul", [step, weight.scale], "scale")
        else:
            scale = self.builder.constant(steps, f"{name}.bias_scale")
        along = {"axis": 0} if steps.ndim else {}
        return [self.builder.add("DequantizeLinear", [integers, scale], f"{name}.bias", **along)]

    def _add_linear(self, node: Node, inputs: list[str]) -> str:
        """Add a linear layer over the last dimension; all others become rows."""
        shape = tensor_shape(node) or ()
        if len(shape) == 2:
            return self.builder.add("Gemm", inputs, node.name, transB=1)
        call = self.start_call(node)
        before = tensor_shape(node.all_input_nodes[0]) or ()
        rows = call.add("Reshape", inputs[0], call.put_sizes(-1, before[-1]))
        product = self.builder.add("Gemm", [rows, *inputs[1:]], node.name, transB=1)
        return call.add("Reshape", product, call.target_shape(shape, call.layout))

    def _add_convolution(self, node: Node, layer: nn.Conv2d, inputs: list[str]) -> str:
        left, right, above, below = layer._reversed_padding_repeated_twice
        pads = [above, left, below, right]
        if layer.padding_mode != "zeros":
            sides = self.builder.constant(np.array([0, 0, *pads[:2], 0, 0, *pads[2:]]))
            mode = _PAD_MODES[layer.padding_mode]
            inputs[0] = self.builder.add("Pad", [inputs[0], sides], node.name, mode=mode)
            pads = [0] * 4
        zeros = self._find_pads(node)
        return self.builder.add(
            "Conv",
            inputs,
            node.name,
            kernel_shape=list(layer.kernel_size),
            strides=list(layer.stride),
            dilations=list(layer.dilation),
            group=layer.groups,
            pads=[own + more for own, more in zip(pads, zeros, strict=True)],
        )

    def _find_zero_pads(self, node: Node) -> Pads | None:
        """Find how many zeros an operation puts around images; None where it does anything else."""
        found, shape = self.survey.places.get(node.name), tensor_shape(node)
        if found is None or shape is None or len(shape) != 4 or node.meta.get("layout") is None:
            return None
        places = found[0].numpy()
        border = find_border(places) if bool((places < 0).any()) else None
        if border is None or any(border.before[:2] + border.after[:2]):
            return None
        whole = np.arange(border.inner.size).reshape(border.inner.shape)
        source = tensor_shape(self.find_source(node))
        if source != border.inner.shape or not np.array_equal(border.inner, whole):
            return None
        above, left, below, right = (*border.before[2:], *border.after[2:])
        return above, left, below, right

    def _takes_pads(self, user: Node) -> bool:
        """Tell whether a node is a convolution that can add zeros itself, or quantizes for such."""
        found = self._find_called(user)
        if self._is_quantization(found):
            return bool(user.users) and all(map(self._takes_pads, user.users))
        layer = found.layer if isinstance(found, QuantizedLayer) else None
        return isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros"

    def _find_pads(self, node: Node) -> Pads:
        """Find the zeros that a convolution adds for an operation before it."""
        source = node.all_input_nodes[0]
        while self._is_quantization(self._find_called(source)):
            source = source.all_input_nodes[0]
        return self._pads.get(source, (0, 0, 0, 0))

    def _takes_clip(self, user: Node) -> bool:
        """Tell whether a node quantizes to 8 bits at most, or hands on in order to what does."""
        if self._is_quantization(self._find_called(user)):
            return True
        return (
            self._keeps_order(user) and bool(user.users) and all(map(self._takes_clip, user.users))
        )

    def _find_clip(self, node: Node) -> tuple[float, float]:
        """Find the bounds that a quantization clips at for an operation before it."""
        source = node.all_input_nodes[0]
        while source not in self._clips and self._keeps_order(source):
            source = source.all_input_nodes[0]
        return self._clips.get(source, (-inf, inf))

    def _keeps_order(self, node: Node) -> bool:
        """Tell whether to clip what a node reads is to clip what it gives."""
        if isinstance(self._find_called(node), OutputRounding):
            return True
        if not node.op.startswith("call_") or tensor_shape(node) is None:
            return False
        return find_form(node, self.module) in (Form.POOL, Form.KEEP, Form.ARRANGE)

    def _find_called(self, node: Node) -> nn.Module | None:
        """Return the module that a node calls; None where it calls none."""
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _is_quantization(self, module: nn.Module | None) -> bool:
        """Tell whether a module quantizes one value to at most 8 bits."""
        if not isinstance(module, Requantizer) or isinstance(module, QuantizedAdd):
            return False
        return module.fake_quantizer.bits <= _LEVEL_BITS
