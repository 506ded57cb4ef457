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
# Versions of the operators and of the file format: old enough for all ONNX Runtimes in use.
_OPSET = 17
_IR_VERSION = 10
# Runs that are not counted: the first ones allocate memory and fill caches.
_WARM_UP = 2
# Severity from which on ONNX Runtime prints.
_ERRORS_ONLY = 3
# ONNX Runtime's convolutions have layouts of their own, which a network's layers pass on.
_LAYOUT_CHANGES = ("Transpose", "ReorderInput", "ReorderOutput")


@dataclass(frozen=True)
class LayerTime:
    """Time of all calls of a layer in one pass.

    Attributes:
        layer: Name of the layer.
        milliseconds: Width in bits (32 for float) → milliseconds.
    """

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
        graph: Traced network.
        batch_size: Number of images at a time.
        repeats: Number of runs of every form, after two to warm up.
        threads: Number of threads of ONNX Runtime; 0 for one per core.

    Yields:
        The time of one layer after the other, in execution order.

    Raises:
        OmpqError: ONNX or ONNX Runtime is not installed.
    """
    require_onnx()
    for name, layer in graph.layers.items():
        total = dict.fromkeys((INTEGER_BITS, FLOAT_BITS), 0.0)
        for (input_shape, output_shape), calls in _count_calls(graph, layer, batch_size).items():
            module = graph.layer_module(name)
            models = {
                width: build_layer_model(module, input_shape, output_shape, width)
                for width in total
            }
            for width, milliseconds in _time_in_turns(models, repeats, threads).items():
                total[width] += calls * milliseconds
        yield LayerTime(name, total)


def require_onnx() -> None:
    """Refuse to go on without ONNX and ONNX Runtime.

    Raises:
        OmpqError: One of them is missing (says what to install).
    """
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise OmpqError(f"measuring latencies needs {' and '.join(missing)}: pip install "
                        f"{' '.join(missing)}")  # fmt: skip


def build_layer_model(
    module: nn.Conv2d | nn.Linear, input_shape: Shape, output_shape: Shape, width: int
) -> ModelProto:
    """Build a layer's ONNX model from `input` to `output`, in float or between 8-bit integers.

    Activations are asymmetric with fixed scales, weights symmetric and per channel: the speed is
    that of any scales.

    Args:
        module: The layer.
        input_shape: Shape of its input, batch first.
        output_shape: Shape of its output; that of a convolution tells its padding.
        width: Width in bits: 32 for float, or 8.
    """
    from onnx import TensorProto, helper, numpy_helper

    weight = _to_array(module.weight)
    bias = np.zeros(len(weight), np.float32) if module.bias is None else _to_array(module.bias)
    if isinstance(module, nn.Conv2d):
        operator, options = "Conv", _describe_convolution(module, input_shape, output_shape)
    else:
        operator, options = "Gemm", {"transB": 1}
        # Gemm takes matrices: of a sequence of tokens, every token is a row.
        input_shape, output_shape = (
            (prod(shape[:-1]), shape[-1]) for shape in (input_shape, output_shape)
        )
    constants = {"weight": weight, "bias": bias}
    layer = helper.make_node(operator, ["input", *constants], ["output"], **options)
    nodes, kind = [layer], TensorProto.FLOAT
    if width == INTEGER_BITS:
        constants = _quantize_constants(weight, bias)
        nodes, kind = _put_between_integers(layer), TensorProto.UINT8
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("input", kind, input_shape)],
        [helper.make_tensor_value_info("output", kind, output_shape)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


def _to_array(parameter: Tensor) -> NDArray[np.float32]:
    return parameter.detach().cpu().float().numpy()


def _describe_convolution(
    module: nn.Conv2d, input_shape: Shape, output_shape: Shape
) -> dict[str, Any]:
    """Describe a convolution by the attributes of ONNX's operator."""
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    before, after = [], []
    for axis in (0, 1):
        # From the shapes: a module's `padding` may be a word, and some modules pad by themselves.
        steps = (output_shape[2 + axis] - 1) * stride[axis]
        reach = steps + dilation[axis] * (kernel[axis] - 1) + 1
        padding = max(reach - input_shape[2 + axis], 0)
        before.append(padding - padding // 2)
        after.append(padding // 2)
    return {
        "kernel_shape": list(kernel),
        "strides": list(stride),
        "dilations": list(dilation),
        "group": module.groups,
        "pads": before + after,
    }


def _quantize_constants(
    weight: NDArray[np.float32], bias: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """Compute the constants of the 8-bit form: integers, scales and zero points.

    Inputs are taken to be −1 … 1, outputs as wide as sums of such inputs are.
    """
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    # The least scale is far above the smallest float32: a channel of zeros needs one as well, and
    # its product with the input's scale must not vanish.
    scale = np.maximum(largest, np.finfo(np.float32).tiny * 2**20) / 127
    columns = scale.reshape(-1, *[1] * (weight.ndim - 1))
    input_scale = np.float32(2 / 255)
    bias_scale = (scale * input_scale).astype(np.float32)
    spread = 4 * float(np.linalg.norm(weight.reshape(len(weight), -1), axis=1).max()) + 1e-6
    # 2^31 − 129 rounds to the largest float32 that an int32 holds.
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


def _put_between_integers(layer: NodeProto) -> list[NodeProto]:
    """Put a layer among nodes that dequantize what it reads and quantize what it gives.

    ONNX Runtime recognises the pattern, and runs it as one kernel on integers.
    """
    from onnx import helper

    def make_node(operator: str, source: str, target: str, name: str, **options: Any) -> NodeProto:
        inputs = [source, f"{name}_scale", f"{name}_zero_point"]
        return helper.make_node(operator, inputs, [target], **options)

    before = [make_node("DequantizeLinear", "input", "input_float", "input")]
    for name in ("weight", "bias"):
        before.append(make_node("DequantizeLinear", name, f"{name}_float", name, axis=0))
    layer.input[:] = [f"{name}_float" for name in layer.input]
    layer.output[:] = ["output_float"]
    return [*before, layer, make_node("QuantizeLinear", "output_float", "output", "output")]


def _count_calls(
    graph: NetworkGraph, layer: Layer, batch_size: int
) -> Counter[tuple[Shape, Shape]]:
    """Count the calls of a layer by the shapes of their input and output."""
    nodes = [node for node in graph.module.graph.nodes if node.name in layer.nodes]
    found: Counter[tuple[Shape, Shape]] = Counter()
    for node in nodes:
        # Shapes were recorded with one image; rows are more where tokens or windows are folded in.
        (rows, *given), (_, *wanted) = (
            tensor_shape(each) or (1,) for each in (node.all_input_nodes[0], node)
        )
        found[(rows * batch_size, *given), (rows * batch_size, *wanted)] += 1
    return found


def _time_in_turns(models: dict[int, ModelProto], repeats: int, threads: int) -> dict[int, float]:
    """Time one run of each model in milliseconds, by ONNX Runtime's own profile.

    Args:
        models: Width in bits → model.
        repeats: Number of runs that count.
        threads: Number of threads of ONNX Runtime; 0 for one per core.
    """
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
        return {width: _read_kernel_time(profile) for width, profile in profiles.items()}


def _read_kernel_time(profile: str) -> float:
    """Read the milliseconds of a run from a profile: the mean of the middle half of its runs.

    Layout changes are left out.
    """
    events = json.loads(Path(profile).read_text(encoding="utf-8"))
    by_node: dict[str, list[float]] = {}
    for event in events:
        is_kernel = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        if is_kernel and event["args"]["op_name"] not in _LAYOUT_CHANGES:
            by_node.setdefault(event["name"], []).append(event["dur"])
    runs = np.sum([times[_WARM_UP:] for times in by_node.values()], axis=0)
    return float(trim_mean(runs, 0.25)) / 1000
