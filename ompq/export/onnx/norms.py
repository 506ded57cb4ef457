"""Norms that no layer has folded in, as ONNX operators."""

from __future__ import annotations

from math import prod

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ompq.export.onnx.operands import Call, Operand
from ompq.integer.batch_norm import StandaloneBatchNorm


def write_layer_norm(call: Call) -> str:
    """Write a layer norm over the last dimensions."""
    shape = call.get("normalized_shape", None)
    rank = 1 if isinstance(shape, int) else len(shape)
    over = call.source.shape[-rank:]
    weight = call.read_optional("weight") or call.put(torch.ones(over))
    bias = call.read_optional("bias")
    epsilon = float(call.get("eps", 1e-5))
    return call.add("LayerNormalization", call.source, weight, bias, axis=-rank, epsilon=epsilon)


def write_rms_norm(call: Call) -> str:
    """Write a norm by the root of the mean square over the last dimensions."""
    shape = call.get("normalized_shape", None)
    rank = 1 if isinstance(shape, int) else len(shape)
    given = call.get("eps", None)
    epsilon = torch.finfo(torch.float32).eps if given is None else float(given)
    axes = call.put_sizes(*range(-rank, 0))
    squares = call.add("Mul", call.source, call.source)
    mean = call.add("ReduceMean", squares, axes, keepdims=1)
    root = call.add("Sqrt", call.add("Add", mean, epsilon))
    normed = call.add("Div", call.source, root)
    weight = call.read_optional("weight")
    return normed if weight is None else call.add("Mul", normed, weight)


def write_batch_norm(call: Call) -> str:
    """Write a batch norm of a module by its running statistics."""
    found = call.called
    norm = found.norm if isinstance(found, StandaloneBatchNorm) else found
    source = call.to_operand(call.resolve(call.node.all_input_nodes[0]))
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        raise call.refuse("it has no running statistics")
    count = norm.num_features
    weight = torch.ones(count) if norm.weight is None else norm.weight
    bias = torch.zeros(count) if norm.bias is None else norm.bias
    parameters = [call.put(each) for each in (weight, bias, norm.running_mean, norm.running_var)]
    return call.add("BatchNormalization", source, *parameters, epsilon=norm.eps)


def write_functional_batch_norm(call: Call) -> str:
    """Write a batch norm by a function."""
    mean, variance = call.read_optional("running_mean"), call.read_optional("running_var")
    if mean is None or variance is None or call.get("training", False):
        raise call.refuse("it has no running statistics")
    weight = call.read_optional("weight") or call.put(torch.ones(mean.shape))
    bias = call.read_optional("bias") or call.put(torch.zeros(mean.shape))
    epsilon = float(call.get("eps", 1e-5))
    return call.add(
        "BatchNormalization", call.source, weight, bias, mean, variance, epsilon=epsilon
    )


def write_group_norm(call: Call) -> str:
    """Write a norm over groups of channels, which are dimension 1."""
    groups = int(call.get("num_groups", 1))
    return _normalise_groups(call, groups)


def write_instance_norm(call: Call) -> str:
    """Write a norm over the pixels of each channel."""
    found = call.called
    tracks = isinstance(found, nn.modules.batchnorm._NormBase) and found.track_running_stats
    if tracks or not call.get("use_input_stats", True):
        raise call.refuse("it uses running statistics")
    return _normalise_groups(call, call.source.shape[1])


def _normalise_groups(call: Call, groups: int) -> str:
    """Write a norm over each of several groups of channels, then weight and bias per channel."""
    source = call.source
    if prod(source.shape[1:]) == groups:
        raise call.refuse("its groups are of one value each")
    rows = call.add("Reshape", source, call.put_sizes(0, groups, -1))
    ones, zeros = call.put(torch.ones(groups)), call.put(torch.zeros(groups))
    epsilon = float(call.get("eps", 1e-5))
    normed = call.add("InstanceNormalization", rows, ones, zeros, epsilon=epsilon)
    result = call.add("Reshape", normed, call.target_shape(source.shape, call.layout))
    trailing = (1,) * (source.rank - 2)
    for kind, name in (("Mul", "weight"), ("Add", "bias")):
        given = call.read_optional(name)
        if given is not None:
            spread = call.add("Reshape", given, call.put_sizes(-1, *trailing))
            result = call.add(kind, result, Operand(spread, (*given.shape, *trailing)))
    return result


def write_local_response_norm(call: Call) -> str:
    """Write a norm over neighbouring channels."""
    size = int(call.get("size", 1))
    if size % 2 == 0:
        raise call.refuse("its window is of an even size")
    numbers = {
        name: float(call.get(argument, default))
        for name, argument, default in (
            ("alpha", "alpha", 1e-4),
            ("beta", "beta", 0.75),
            ("bias", "k", 1.0),
        )
    }
    return call.add("LRN", call.source, size=size, **numbers)
