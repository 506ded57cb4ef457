"""Operations in float that work value by value, multiply matrices or reduce, as ONNX operators."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf, prod

import torch
from onnx import TensorProto

from ompq.export.onnx.operands import Call, Operand
from ompq.graph.arguments import read_clip_bounds, read_dims

Writer = Callable[[Call], str | list[str]]


def write_unary(kind: str, call: Call) -> str:
    """Write an operator of one tensor without arguments."""
    return call.add(kind, call.source)


def write_binary(kind: str, call: Call) -> str:
    """Write an operator of two tensors or numbers."""
    return _settle(call, call.add(kind, read_number(call, "input"), read_number(call, "other")))


def read_number(call: Call, argument: str) -> Operand:
    """Read an argument of arithmetic in float, where it holds truth values or whole numbers too."""
    operand = call.read(argument)
    if call.holds_floats(argument):
        return operand
    return Operand(call.add("Cast", operand, to=TensorProto.FLOAT), operand.shape)


def _settle(call: Call, value: str) -> str:
    """Give what was computed in float the type that PyTorch gives it, if that is of integers."""
    kind = call.node.meta.get("dtype")
    if kind in (None, torch.bool) or kind.is_floating_point:
        return value
    return call.add("Cast", value, to=TensorProto.INT64)


def write_addition(kind: str, call: Call) -> str:
    """Write a sum or difference, whose second part a factor may multiply."""
    first, second = read_number(call, "input"), read_number(call, "other").name
    factor = call.get("alpha", 1)
    if factor != 1:
        second = call.add("Mul", second, float(factor))
    return _settle(call, call.add(kind, first, second))


def write_reversed_difference(call: Call) -> str:
    """Write `rsub`: the second minus the first."""
    if call.get("alpha", 1) != 1:
        raise call.refuse("it multiplies by `alpha`")
    return _settle(call, call.add("Sub", read_number(call, "other"), read_number(call, "input")))


def write_quotient(call: Call) -> str:
    """Write a quotient, rounded or not."""
    quotient = call.add("Div", read_number(call, "input"), read_number(call, "other"))
    mode = call.get("rounding_mode", None)
    if mode not in (None, "floor"):
        raise call.refuse(f"its `rounding_mode` is {mode}")
    return _settle(call, call.add("Floor", quotient) if mode else quotient)


def write_clip(call: Call) -> str:
    """Write a clipping activation."""
    bounds = read_clip_bounds(call.node, call.module)
    if bounds is None:
        raise call.refuse("its bounds are tensors")
    return add_clip(call, call.source, bounds)


def add_clip(call: Call, source: Operand | str, bounds: tuple[float, float]) -> str:
    """Add a clip of floats to two bounds, −∞ and ∞ where there is none."""
    low, high = bounds
    if (low, high) == (0, inf):
        return call.add("Relu", source)
    limits = (low if low > -inf else None), (high if high < inf else None)
    return call.add("Clip", source, *(None if limit is None else float(limit) for limit in limits))


def write_power(call: Call) -> str:
    """Write a power."""
    return call.add("Pow", call.read("input"), call.read("exponent"))


def write_square(call: Call) -> str:
    """Write a square."""
    return call.add("Mul", call.source, call.source)


def write_rsqrt(call: Call) -> str:
    """Write 1 / √x."""
    return call.add("Reciprocal", call.add("Sqrt", call.source))


def write_gelu(call: Call) -> str:
    """Write a GELU, exact or by its approximation."""
    approximate = call.get("approximate", "none")
    return call.add("Gelu", call.source, approximate=str(approximate))


def write_silu(call: Call) -> str:
    """Write x · σ(x)."""
    return call.add("Mul", call.source, call.add("Sigmoid", call.source))


def write_quick_gelu(call: Call) -> str:
    """Write x · σ(1.702 · x)."""
    inner = call.add("Sigmoid", call.add("Mul", call.source, 1.702))
    return call.add("Mul", call.source, inner)


def write_hardsigmoid(call: Call) -> str:
    """Write clip(x / 6 + 1/2, 0, 1)."""
    return call.add("HardSigmoid", call.source, alpha=1 / 6, beta=0.5)


def write_softplus(call: Call) -> str:
    """Write log(1 + exp(βx)) / β."""
    beta = float(call.get("beta", 1.0))
    if beta == 1:
        return call.add("Softplus", call.source)
    return call.add("Div", call.add("Softplus", call.add("Mul", call.source, beta)), beta)


def write_with_slope(kind: str, argument: str, default: float, call: Call) -> str:
    """Write an activation with one number, ONNX's `alpha`."""
    return call.add(kind, call.source, alpha=float(call.get(argument, default)))


def write_prelu(call: Call) -> str:
    """Write max(x, 0) + w · min(x, 0), with one w for all or one per channel (dimension 1)."""
    slope = call.read("weight")
    if slope.shape not in ((), (1,)):
        trailing = (1,) * max(0, call.source.rank - 2)
        reshaped = call.add("Reshape", slope, call.put_sizes(-1, *trailing))
        slope = Operand(reshaped, (*slope.shape, *trailing))
    return call.add("PRelu", call.source, slope)


def write_softmax(kind: str, call: Call) -> str:
    """Write a softmax, or its logarithm, along one dimension."""
    dim = call.get("dim", None)
    if dim is None:
        raise call.refuse("it does not tell its dimension; give it `dim`")
    return call.add(kind, call.source, axis=int(dim))


def write_reduction(kind: str, call: Call) -> str:
    """Write a mean, sum, largest or least value over dimensions."""
    dims = read_dims(call.node, call.module)
    if dims is None or not call.gives_tensor:
        raise call.refuse("its dimensions cannot be told, or it gives several tensors")
    keep = int(bool(call.get("keepdim", False)))
    source = read_number(call, "input")
    return _settle(call, call.add(kind, source, call.put_sizes(*dims), keepdims=keep))


def write_norm(call: Call) -> str:
    """Write √Σx² over dimensions."""
    if call.get("p", 2) not in (2, 2.0, "fro"):
        raise call.refuse("it is no Euclidean norm")
    return write_reduction("ReduceL2", call)


def write_normalize(call: Call) -> str:
    """Write x / max(‖x‖₂, ε) along one dimension."""
    if float(call.get("p", 2.0)) != 2:
        raise call.refuse("it is no Euclidean norm")
    dims = call.put_sizes(int(call.get("dim", 1)))
    length = call.add("ReduceL2", call.source, dims, keepdims=1)
    return call.add("Div", call.source, call.add("Max", length, float(call.get("eps", 1e-12))))


def write_variance(root: bool, call: Call) -> str:
    """Write a variance, or its root, over dimensions."""
    dims = read_dims(call.node, call.module)
    if dims is None or any(call.source.shape[dim] < 2 for dim in dims):
        raise call.refuse("its dimensions cannot be told")
    axes = call.put_sizes(*dims)
    count = prod(call.source.shape[dim] for dim in dims)
    correction = float(call.get("correction", 1 if call.get("unbiased", True) else 0))
    keep = int(bool(call.get("keepdim", False)))
    centred = call.add("Sub", call.source, call.add("ReduceMean", call.source, axes, keepdims=1))
    squares = call.add("ReduceSumSquare", centred, axes, keepdims=keep)
    variance = call.add("Div", squares, count - correction)
    return call.add("Sqrt", variance) if root else variance


def write_linear(call: Call) -> str:
    """Write x · wᵀ + b for a weight that no quantized layer holds."""
    product = call.add("MatMul", call.source, transpose(call, call.read("weight")))
    bias = call.read_optional("bias")
    return product if bias is None else call.add("Add", product, bias)


def write_convolution(call: Call) -> str:
    """Write a convolution over height and width whose weight no quantized layer holds."""
    weight, padding = call.read("weight"), call.get("padding", 0)
    if isinstance(padding, str) or getattr(call.called, "padding_mode", "zeros") != "zeros":
        raise call.refuse(f"its padding is {padding}")
    pads = to_pair(padding) * 2
    return call.add(
        "Conv",
        call.source,
        weight,
        call.read_optional("bias"),
        kernel_shape=list(weight.shape[2:]),
        strides=list(to_pair(call.get("stride", 1))),
        dilations=list(to_pair(call.get("dilation", 1))),
        group=int(call.get("groups", 1)),
        pads=list(pads),
    )


def to_pair(value: int | tuple[int, ...] | list[int]) -> tuple[int, int]:
    """Write what stands for height and width as two numbers.

    >>> to_pair(2), to_pair([1, 3])
    ((2, 2), (1, 3))
    """
    numbers = [value] if isinstance(value, int) else list(value)
    return int(numbers[0]), int(numbers[-1])


def transpose(call: Call, matrix: Operand) -> str:
    """Exchange the last two dimensions of a tensor; return its name."""
    order = list(range(matrix.rank))
    order[-2:] = order[-1], order[-2]
    return call.add("Transpose", matrix, perm=order)


def write_einsum(call: Call) -> str:
    """Write a sum of products in Einstein's notation."""
    given = list(call.node.args)
    if not given or not isinstance(given[0], str):
        raise call.refuse("its equation is no text")
    parts = given[1] if isinstance(given[1], tuple | list) else given[1:]
    operands = [call.resolve(part) for part in parts]
    return call.add("Einsum", *operands, equation=given[0].replace(" ", ""))


def write_choice(call: Call) -> str:
    """Write the choice of one value or another by a condition."""
    condition, kept, other = (call.resolve(part) for part in call.node.args)
    return call.add("Where", condition, *(call.to_operand(part) for part in (kept, other)))


def write_masked_fill(call: Call) -> str:
    """Write a number into the places that a mask tells."""
    return call.add("Where", call.read("mask"), call.read("value"), call.source)


def write_concatenation(call: Call) -> str:
    """Write a concatenation along a dimension, or a stack along a new one."""
    parts = call.arguments.get("tensors")
    if not isinstance(parts, tuple | list):
        raise call.refuse("what it joins are no single tensors")
    operands = [call.to_operand(part) for part in parts]
    stacks = call.operation == "stack"
    return add_concatenation(call, operands, int(call.get("dim", 0)), stacks)


def add_concatenation(call: Call, parts: list[Operand], dim: int, stacks: bool) -> str:
    """Add a concatenation along a dimension of the result, counted from 0 on or from its end."""
    names = [part.name for part in parts]
    axis = dim % (parts[0].rank + stacks)
    if stacks:
        names = [call.add("Unsqueeze", name, call.put_sizes(axis)) for name in names]
    return call.add("Concat", *names, axis=axis)


# What is written by an operator of one or two tensors, or one of the functions above.
_BY_NAMES: dict[str, Writer] = {
    "sigmoid": partial(write_unary, "Sigmoid"),
    "tanh": partial(write_unary, "Tanh"),
    "exp": partial(write_unary, "Exp"),
    "log": partial(write_unary, "Log"),
    "sqrt": partial(write_unary, "Sqrt"),
    "abs absolute": partial(write_unary, "Abs"),
    "neg negative": partial(write_unary, "Neg"),
    "erf": partial(write_unary, "Erf"),
    "sin": partial(write_unary, "Sin"),
    "cos": partial(write_unary, "Cos"),
    "floor": partial(write_unary, "Floor"),
    "ceil": partial(write_unary, "Ceil"),
    "round": partial(write_unary, "Round"),
    "reciprocal": partial(write_unary, "Reciprocal"),
    "softsign": partial(write_unary, "Softsign"),
    "mish": partial(write_unary, "Mish"),
    "hardswish": partial(write_unary, "HardSwish"),
    "selu": partial(write_unary, "Selu"),
    "rsqrt": write_rsqrt,
    "square": write_square,
    "relu relu6 hardtanh clamp clip clamp_min clamp_max": write_clip,
    "gelu": write_gelu,
    "silu swish": write_silu,
    "hardsigmoid": write_hardsigmoid,
    "softplus": write_softplus,
    "leaky_relu leakyrelu": partial(write_with_slope, "LeakyRelu", "negative_slope", 0.01),
    "elu": partial(write_with_slope, "Elu", "alpha", 1.0),
    "celu": partial(write_with_slope, "Celu", "alpha", 1.0),
    "prelu": write_prelu,
    "softmax": partial(write_softmax, "Softmax"),
    "log_softmax logsoftmax": partial(write_softmax, "LogSoftmax"),
    "add iadd": partial(write_addition, "Add"),
    "sub isub subtract": partial(write_addition, "Sub"),
    "rsub": write_reversed_difference,
    "mul imul multiply": partial(write_binary, "Mul"),
    "div truediv itruediv true_divide divide": write_quotient,
    "gt greater": partial(write_binary, "Greater"),
    "ge greater_equal": partial(write_binary, "GreaterOrEqual"),
    "lt less": partial(write_binary, "Less"),
    "le less_equal": partial(write_binary, "LessOrEqual"),
    "eq": partial(write_binary, "Equal"),
    "maximum": partial(write_binary, "Max"),
    "minimum": partial(write_binary, "Min"),
    "matmul bmm mm": partial(write_binary, "MatMul"),
    "pow ipow": write_power,
    "einsum": write_einsum,
    "linear": write_linear,
    "conv2d": write_convolution,
    "where": write_choice,
    "masked_fill": write_masked_fill,
    "sum": partial(write_reduction, "ReduceSum"),
    "amax max": partial(write_reduction, "ReduceMax"),
    "amin min": partial(write_reduction, "ReduceMin"),
    "norm": write_norm,
    "normalize": write_normalize,
    "var": partial(write_variance, False),
    "std": partial(write_variance, True),
    "cat concat concatenate stack": write_concatenation,
}
WRITERS: dict[str, Writer] = {
    name: writer for names, writer in _BY_NAMES.items() for name in names.split()
}
