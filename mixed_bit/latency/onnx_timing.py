"""Milliseconds of every layer by itself in ONNX Runtime, in float and on 8 bits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean
from torch import Tensor, nn

from ompq.cost import FLOAT_BITS
from ompq.errors import OmpqError
from ompq.graph import Layer, NetworkGraph
from ompq.graph.operations import tensor_shape

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

INTEGER_BITS = 8
Shape = tuple[int, ...]
_OPSET, _IR_VERSION, _WARM_UP, _ERRORS_ONLY = 17, 10, 2, 3
# ONNX Runtime's convolutions have layouts of their own, which a network's layers pass on.
_LAYOUT_CHANGES = ("Transpose", "ReorderInput", "ReorderOutput")


@dataclass(frozen=True)
class LayerTime:
    """Milliseconds of all calls of a layer in one pass, by width (32 for float)."""

    layer: str
    milliseconds: dict[int, float]


def time_layers(
    graph: NetworkGraph, *, batch_size: int = 1, repeats: int = 20, threads: int = 0
) -> Iterator[LayerTime]:
    """Time every layer on the CPU provider of ONNX Runtime.

    Each layer is a model of its own, whose 8-bit form takes and gives integers, as between layers
    of a quantized network. The two forms take turns, so that a disturbance meets both. What counts
    is the time inside the layer's kernel, as the runtime's profile has it.

    Args:
        graph: the network.
        batch_size: images at a time.
        repeats: runs of every form, after two to warm up.
        threads: of ONNX Runtime; 0 for one per core.

    Raises:
        OmpqError: ONNX or ONNX Runtime is not installed.
    """
    require_onnx()
    for name, layer in graph.layers.items():
        total = dict.fromkeys((INTEGER_BITS, FLOAT_BITS), 0.0)
        for (given, wanted), calls in _shapes(graph, layer, batch_size).items():
            module = graph.layer_module(name)
            models = {width: layer_model(module, given, wanted, width) for width in total}
            for width, milliseconds in _taking_turns(models, repeats, threads).items():
                total[width] += calls * milliseconds
        yield LayerTime(name, total)


def require_onnx() -> None:
    """Refuse to go on without ONNX and ONNX Runtime.

    Raises:
        OmpqError: says what to install.
    """
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise OmpqError(f"measuring latencies needs {' and '.join(missing)}: pip install "
                        f"{' '.join(missing)}")  # fmt: skip


def layer_model(
    module: nn.Conv2d | nn.Linear, given: Shape, wanted: Shape, width: int
) -> ModelProto:
    """A layer as an ONNX model from `input` to `output`, in float or between 8-bit integers.

    Activations are asymmetric with fixed scales, weights symmetric and per channel: the speed is
    that of any scales.

    Args:
        module: the layer.
        given: shape of its input, batch first.
        wanted: shape of its output; that of a convolution tells its padding.
        width: 32 for float, or 8.
    """
    from onnx import TensorProto, helper, numpy_helper

    weight = _array(module.weight)
    bias = np.zeros(len(weight), np.float32) if module.bias is None else _array(module.bias)
    if isinstance(module, nn.Conv2d):
        operator, options = "Conv", _conv_options(module, given, wanted)
    else:
        operator, options = "Gemm", {"transB": 1}
        given, wanted = ((prod(shape[:-1]), shape[-1]) for shape in (given, wanted))
    constants = {"weight": weight, "bias": bias}
    layer = helper.make_node(operator, ["input", *constants], ["output"], **options)
    nodes, kind = [layer], TensorProto.FLOAT
    if width == INTEGER_BITS:
        constants = _integers(weight, bias)
        nodes, kind = _between_integers(layer), TensorProto.UINT8
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("input", kind, given)],
        [helper.make_tensor_value_info("output", kind, wanted)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


def _array(parameter: Tensor) -> NDArray[np.float32]:
    return parameter.detach().cpu().float().numpy()


def _conv_options(module: nn.Conv2d, given: Shape, wanted: Shape) -> dict[str, Any]:
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    before, after = [], []
    for axis in (0, 1):
        reach = (wanted[2 + axis] - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
        padding = max(reach - given[2 + axis], 0)
        before.append(padding - padding // 2)
        after.append(padding // 2)
    return {
        "kernel_shape": list(kernel),
        "strides": list(stride),
        "dilations": list(dilation),
        "group": module.groups,
        "pads": before + after,
    }


def _integers(weight: NDArray[np.float32], bias: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Constants of the 8-bit form: input of −1 … 1, output as wide as a sum of such inputs is."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    scale = np.maximum(largest, np.finfo(np.float32).tiny * 2**20) / 127
    columns = scale.reshape(-1, *[1] * (weight.ndim - 1))
    input_scale = np.float32(2 / 255)
    bias_scale = (scale * input_scale).astype(np.float32)
    spread = 4 * float(np.linalg.norm(weight.reshape(len(weight), -1), axis=1).max()) + 1e-6
    whole = np.clip(np.rint(bias / bias_scale), -(2**31) + 1, 2**31 - 129)
    return {
        "input_scale": np.array(input_scale),
        "input_zero_point": np.array(128, np.uint8),
        "weight": np.rint(weight / columns).astype(np.int8),
        "weight_scale": scale.astype(np.float32),
        "weight_zero_point": np.zeros(len(weight), np.int8),
        "bias": whole.astype(np.int32),
        "bias_scale": bias_scale,
        "bias_zero_point": np.zeros(len(weight), np.int32),
        "output_scale": np.array(np.float32(2 * spread / 255)),
        "output_zero_point": np.array(128, np.uint8),
    }


def _between_integers(layer: NodeProto) -> list[NodeProto]:
    """The layer among nodes that dequantize what it reads and quantize what it gives."""
    from onnx import helper

    def node(operator: str, source: str, target: str, name: str, **options: Any) -> NodeProto:
        inputs = [source, f"{name}_scale", f"{name}_zero_point"]
        return helper.make_node(operator, inputs, [target], **options)

    before = [node("DequantizeLinear", "input", "input_float", "input")]
    for name in ("weight", "bias"):
        before.append(node("DequantizeLinear", name, f"{name}_float", name, axis=0))
    layer.input[:] = [f"{name}_float" for name in layer.input]
    layer.output[:] = ["output_float"]
    return [*before, layer, node("QuantizeLinear", "output_float", "output", "output")]


def _shapes(graph: NetworkGraph, layer: Layer, batch_size: int) -> Counter[tuple[Shape, Shape]]:
    """Input and output shapes of a layer's calls, and how often they occur."""
    nodes = [node for node in graph.module.graph.nodes if node.name in layer.nodes]
    found: Counter[tuple[Shape, Shape]] = Counter()
    for node in nodes:
        (one, *given), (_, *wanted) = (
            tensor_shape(each) or (1,) for each in (node.all_input_nodes[0], node)
        )
        found[(one * batch_size, *given), (one * batch_size, *wanted)] += 1
    return found


def _taking_turns(models: dict[int, ModelProto], repeats: int, threads: int) -> dict[int, float]:
    """Milliseconds of one run of each model, by ONNX Runtime's own profile."""
    from onnxruntime import InferenceSession, SessionOptions

    generator = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        calls = {}
        for width, model in models.items():
            options = SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = _ERRORS_ONLY
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / str(width))
            session = InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            shape = session.get_inputs()[0].shape
            values: NDArray[Any] = generator.integers(0, 256, shape, dtype=np.uint8)
            if width == FLOAT_BITS:
                values = generator.uniform(-1, 1, shape).astype(np.float32)
            calls[width] = (session, {"input": values})
        for _ in range(_WARM_UP + repeats):
            for session, feed in calls.values():
                session.run(None, feed)
        profiles = {width: session.end_profiling() for width, (session, _) in calls.items()}
        return {width: _kernel_time(profile) for width, profile in profiles.items()}


def _kernel_time(profile: str) -> float:
    """Mean of the middle half of a profile's runs in milliseconds, layout changes left out."""
    events = json.loads(Path(profile).read_text(encoding="utf-8"))
    by_node: dict[str, list[float]] = {}
    for event in events:
        is_kernel = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        if is_kernel and event["args"]["op_name"] not in _LAYOUT_CHANGES:
            by_node.setdefault(event["name"], []).append(event["dur"])
    runs = np.sum([times[_WARM_UP:] for times in by_node.values()], axis=0)
    return float(trim_mean(runs, 0.25)) / 1000
