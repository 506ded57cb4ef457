"""The one place that reads an operation's arguments, whichever way they are spelled.

By position or by keyword, under torch's names or NumPy's (`axis`, `keepdims`, `x1`), of a module, a
function or a method; numbers that a network computes from sizes are read from the recorded shapes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ompq.graph.operations import (
    ADDITIONS,
    DIFFERENCES,
    PRODUCTS,
    QUOTIENTS,
    operation,
    tensor_shape,
)

# The arguments of operations by position, their first input aside (`tensors` where there are many).
_BY_POSITION = {
    "relu relu6 silu hardswish hardsigmoid selu mish": "inplace",
    "hardtanh": "min_val max_val inplace",
    "clamp clip": "min max",
    "clamp_min": "min",
    "clamp_max": "max",
    "threshold": "threshold value inplace",
    "mean sum var std norm": "dim keepdim",
    "amax amin max min median argmax argmin": "dim keepdim",
    "softmax log_softmax logsoftmax cumsum": "dim",
    "gelu": "approximate",
    "leaky_relu leakyrelu": "negative_slope inplace",
    "elu celu": "alpha inplace",
    "softplus": "beta threshold",
    "prelu": "weight",
    "pow ipow": "exponent",
    "matmul bmm mm maximum minimum": "other",
    "gt greater ge greater_equal lt less le less_equal eq": "other",
    "linear": "weight bias",
    "conv2d": "weight bias stride padding dilation groups",
    "masked_fill": "mask value",
    "scaled_dot_product_attention": "key value attn_mask dropout_p is_causal scale enable_gqa",
    "normalize": "p dim eps",
    "layer_norm layernorm": "normalized_shape weight bias eps",
    "rms_norm rmsnorm": "normalized_shape weight eps",
    "group_norm groupnorm": "num_groups weight bias eps",
    "batch_norm": "running_mean running_var weight bias training momentum eps",
    "instance_norm instancenorm2d": "running_mean running_var weight bias use_input_stats momentum "
    "eps",
    "local_response_norm localresponsenorm": "size alpha beta k",
    "avg_pool2d avgpool2d": "kernel_size stride padding ceil_mode count_include_pad "
    "divisor_override",
    "max_pool1d maxpool1d max_pool2d maxpool2d": "kernel_size stride padding dilation ceil_mode "
    "return_indices",
    "adaptive_avg_pool2d adaptiveavgpool2d adaptive_max_pool2d adaptivemaxpool2d": "output_size "
    "return_indices",
    "cat concat concatenate stack": "dim",
    "sub isub subtract rsub": "other alpha",
    "flatten": "start_dim end_dim",
    "unflatten": "dim sizes",
    "reshape view expand repeat tile broadcast_to": "shape",
    "permute flip": "dims",
    "transpose swapaxes swapdims": "dim0 dim1",
    "movedim moveaxis": "source destination",
    "squeeze unsqueeze unbind": "dim",
    "getitem": "index",
    "getattr": "name",
    "split split_with_sizes": "split_size dim",
    "chunk": "chunks dim",
    "tensor_split": "indices_or_sections dim",
    "narrow": "dim start length",
    "select": "dim index",
    "index_select": "dim index",
    "roll": "shifts dims",
    "pad": "pad mode value",
    "zeropad2d constantpad2d": "padding value",
    "interpolate": "size scale_factor mode align_corners recompute_scale_factor antialias",
    "upsample upsamplingnearest2d upsamplingbilinear2d": "size scale_factor mode align_corners",
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout": "p training inplace",
    "stochastic_depth": "p mode training",
    "drop_path": "drop_prob training",
    "pixel_shuffle pixelshuffle": "upscale_factor",
    "to type type_as": "dtype",
    **{" ".join(ADDITIONS): "other alpha", " ".join(PRODUCTS): "other"},
    **{" ".join(QUOTIENTS): "other rounding_mode"},
}
_NAMES = {
    name: tuple(arguments.split())
    for group, arguments in _BY_POSITION.items()
    for name in group.split()
}
# Other names that the arguments go by.
_SYNONYMS = {
    "self": "input", "tensor": "input", "x": "input", "x1": "input", "a": "input",
    "query": "input", "x2": "other", "mat2": "other",
    "axis": "dim", "axes": "dim", "keepdims": "keepdim",
    "arrays": "tensors", "a_min": "min", "a_max": "max",
    "min_value": "min_val", "max_value": "max_val", "split_size_or_sections": "split_size",
    "split_sizes": "split_size", "axis0": "dim0", "axis1": "dim1", "size": "shape",
    "sizes": "shape", "repeats": "shape", "unflattened_size": "sizes",
}  # fmt: skip
# Of these, `size` and `sizes` are arguments in their own right.
_OWN_NAMES = {
    "interpolate": "size",
    "upsample": "size",
    "upsamplingnearest2d": "size",
    "upsamplingbilinear2d": "size",
    "unflatten": "sizes",
    "local_response_norm": "size",
    "localresponsenorm": "size",
}
# Several numbers may be written one after the other: `x.permute(0, 2, 1)`.
_SPREAD = frozenset("reshape view expand repeat tile permute flip".split())
_OF_TENSORS = frozenset("cat concat concatenate stack".split())
# Modules from which functions of numbers come.
_PURE = (operator, math)
Pair = tuple[int, int]


@dataclass(frozen=True)
class PoolingWindow:
    """Window of an average over height and width; every output divides by the kernel's size.

    Attributes:
        kernel: Height and width.
        stride: Rows and columns from one window to the next.
        padding: Zeros above and below, and to the left and right.
    """

    kernel: Pair
    stride: Pair
    padding: Pair

    @property
    def count(self) -> int:
        """Return how many values an output is the average of."""
        return prod(self.kernel)


def read_arguments(node: Node, module: GraphModule) -> dict[str, Any]:
    """Read the arguments of an operation, by torch's names for them.

    Args:
        node: Node that calls a module, a function or a method.
        module: Traced network that the node belongs to.

    Returns:
        The arguments that are given, or that a module holds; the first is `input` (`tensors` of a
        concatenation), and `dim` is the dimension or dimensions. Numbers that are computed from
        sizes are numbers where the recorded shapes tell them; tensors are nodes.
    """
    name = operation(node, module)
    names = _NAMES.get(name, ())
    found: dict[str, Any] = {}
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        held = {key: getattr(called, key, None) for key in (*names, "unflattened_size")}
        found = {_rename(name, key): value for key, value in held.items() if value is not None}
    first = "tensors" if name in _OF_TENSORS else "input"
    given = list(node.args)
    if name in _SPREAD and len(given) > 1 and not isinstance(given[1], tuple | list):
        given = [given[0], tuple(given[1:])]
    found |= dict(zip((first, *names), given, strict=False))
    found |= {_rename(name, key): value for key, value in node.kwargs.items()}
    if first == "tensors" and "input" in found:
        found["tensors"] = found.pop("input")
    return {key: _resolve(value) for key, value in found.items()}


def read_dims(node: Node, module: GraphModule) -> tuple[int, ...] | None:
    """Read which dimensions of its input an operation works on, counted from 0 on.

    Args:
        node: Node of a reduction, a pooling, a concatenation, a split or a change of layout.
        module: Traced network that the node belongs to.

    Returns:
        The dimensions in ascending order (those of the result, of a concatenation); None where
        they cannot be told.
    """
    name, arguments = operation(node, module), read_arguments(node, module)
    first = arguments.get("input", arguments.get("tensors"))
    sources = [part for part in _flatten(first) if isinstance(part, Node)]
    shape = tensor_shape(node if name in _OF_TENSORS else sources[0]) if sources else None
    if shape is None:
        return None
    rank = len(shape)
    if "2d" in name:
        return tuple(range(rank))[-2:]
    if name == "flatten":
        start, end = (int(arguments.get(k, d)) for k, d in (("start_dim", 0), ("end_dim", -1)))
        return tuple(range(start % rank, end % rank + 1))
    if name in ("transpose", "swapaxes", "swapdims"):
        given = [arguments.get("dim0"), arguments.get("dim1")]
    elif name in _OF_TENSORS | {"split", "split_with_sizes", "chunk", "unbind", "tensor_split"}:
        given = [arguments.get("dim", 0)]
    else:
        chosen = arguments.get("dim", arguments.get("dims"))
        # A reduction without dimensions, or with none of them, is one over all.
        given = list(range(rank)) if chosen in (None, (), []) else list(_flatten(chosen))
    known = [dim for dim in given if isinstance(dim, int) and -rank <= dim < rank]
    return tuple(sorted({dim % rank for dim in known})) if len(known) == len(given) else None


def read_clip_bounds(node: Node, module: GraphModule) -> tuple[float, float] | None:
    """Read the least and the largest value that a clipping activation lets pass.

    Args:
        node: Node whose operation is one of `CLIPS`.
        module: Traced network that the node belongs to.

    Returns:
        The two bounds, −∞ and ∞ where there is none; None where a bound is a tensor.
    """
    name = operation(node, module)
    if name in ("relu", "relu6"):
        return 0.0, inf if name == "relu" else 6.0
    arguments = read_arguments(node, module)
    if name == "hardtanh":
        low, high = arguments.get("min_val", -1.0), arguments.get("max_val", 1.0)
    else:
        low, high = arguments.get("min"), arguments.get("max")
    if any(isinstance(bound, Node | Tensor) for bound in (low, high)):
        return None
    return (-inf if low is None else float(low)), (inf if high is None else float(high))


def read_factor(node: Node, module: GraphModule) -> float | None:
    """Read the positive number that an operation multiplies its tensor by; adding 0 is by 1.

    Args:
        node: Node that calls a function or a method.
        module: Traced network that the node belongs to.

    Returns:
        The number; None where the operation does anything else.
    """
    name, arguments = operation(node, module), read_arguments(node, module)
    given = [arguments.get("input"), arguments.get("other")]
    numbers = [each for each in given if isinstance(each, int | float)]
    if node.op == "call_module" or len(numbers) != 1:
        return None
    number, is_second = float(numbers[0]), isinstance(given[0], Node)
    if name in ADDITIONS or (name in DIFFERENCES and is_second):
        return 1.0 if number == 0 else None
    if name in QUOTIENTS and is_second and number > 0 and not arguments.get("rounding_mode"):
        number = 1 / number
    elif name not in PRODUCTS:
        return None
    return number if 0 < number < inf else None


def read_pooling_window(node: Node, module: GraphModule) -> PoolingWindow | None:
    """Read the window of an average over height and width.

    Args:
        node: Node whose operation is one of `AVERAGES`.
        module: Traced network that the node belongs to.

    Returns:
        The window; None where not every output divides by the size of the kernel, or other
        dimensions are averaged.
    """
    source = node.all_input_nodes[0]
    before, after = tensor_shape(source), tensor_shape(node)
    if before is None or after is None or len(before) != 4 or before[:2] != after[:2]:
        return None
    name = operation(node, module)
    if name == "mean":
        whole = read_dims(node, module) == (2, 3)
        return PoolingWindow(before[2:], before[2:], (0, 0)) if whole else None
    if len(after) != 4:
        return None
    if name.startswith("adaptive"):
        # Adaptive windows of several sizes are no pooling with one kernel.
        if before[2] % after[2] or before[3] % after[3]:
            return None
        kernel = before[2] // after[2], before[3] // after[3]
        return PoolingWindow(kernel, kernel, (0, 0))
    window = _read_given_window(read_arguments(node, module))
    return window if window is not None and _count_windows(window, before) == after[2:] else None


def _read_given_window(arguments: dict[str, Any]) -> PoolingWindow | None:
    """Read the window of a pooling whose kernel, stride and padding are written down."""
    kernel = _to_pair(arguments.get("kernel_size"))
    stride = _to_pair(arguments.get("stride") or kernel)
    padding = _to_pair(arguments.get("padding", 0))
    if kernel is None or stride is None or padding is None or arguments.get("divisor_override"):
        return None
    if padding != (0, 0) and not arguments.get("count_include_pad", True):
        return None
    return PoolingWindow(kernel, stride, padding)


def _count_windows(window: PoolingWindow, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Count the whole windows per dimension; `ceil_mode` would add some that are cut off."""
    sides = zip(shape[2:], window.kernel, window.stride, window.padding, strict=True)
    return tuple((size + 2 * zeros - kernel) // step + 1 for size, kernel, step, zeros in sides)


def _to_pair(value: Any) -> Pair | None:
    """Write what stands for height and width as two numbers: one number, or one or two of them."""
    numbers = list(_flatten(value))
    if not numbers or len(numbers) > 2 or not all(isinstance(number, int) for number in numbers):
        return None
    return numbers[0], numbers[-1]


def _rename(name: str, key: str) -> str:
    """Return torch's name for an argument of the operation `name`."""
    return key if _OWN_NAMES.get(name) == key else _SYNONYMS.get(key, key)


def _flatten(value: Any) -> Iterator[Any]:
    """Yield the elements of a value that may be one of them, or a sequence."""
    if isinstance(value, tuple | list):
        yield from value
    else:
        yield value


def _resolve(value: Any) -> Any:
    """Replace nodes that compute numbers from sizes by these numbers, where shapes tell them."""
    if isinstance(value, Node):
        return _compute_number(value)
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, tuple | list):
        return type(value)([_resolve(part) for part in value])
    if isinstance(value, slice):
        return slice(_resolve(value.start), _resolve(value.stop), _resolve(value.step))
    return value


def _compute_number(node: Node) -> Any:
    """Compute what a node makes of sizes; a node that makes anything else is returned itself."""
    if tensor_shape(node) is not None or not node.op.startswith("call_") or not node.args:
        return node
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    shape = tensor_shape(node.args[0]) if isinstance(node.args[0], Node) else None
    rest = [_resolve(argument) for argument in node.args[1:]]
    if shape is not None:
        return _read_size(node, name, shape, rest)
    given = [_resolve(node.args[0]), *rest]
    known = not any(isinstance(part, Node) for each in given for part in _flatten(each))
    if callable(node.target) and known and not node.kwargs and _is_pure(node.target):
        return node.target(*given)
    return node


def _read_size(node: Node, name: str, shape: tuple[int, ...], rest: list[Any]) -> Any:
    """Read what a node asks of a tensor's shape; anything else it may ask stays a node."""
    asked = rest[0] if rest else node.kwargs.get("dim")
    if name == "getattr" and asked in ("shape", "ndim"):
        return shape if asked == "shape" else len(shape)
    if name == "size" and (asked is None or isinstance(asked, int)):
        return shape if asked is None else shape[asked]
    simple = {"dim": len(shape), "ndimension": len(shape), "numel": prod(shape)}
    return simple.get(name, node)


def _is_pure(function: Any) -> bool:
    """Tell whether a function is one of numbers, which tracing did not carry out."""
    return any(getattr(home, function.__name__, None) is function for home in _PURE)
