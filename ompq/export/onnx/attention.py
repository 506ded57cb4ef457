"""Attention in float, as ONNX operators: softmax(q · kᵀ · scale + mask) · v."""

from __future__ import annotations

from math import sqrt

import numpy as np
import torch
from torch import Tensor, nn

from ompq.export.onnx.floats import transpose
from ompq.export.onnx.operands import Call, Operand


def write_dot_product_attention(call: Call) -> str:
    """Write `scaled_dot_product_attention`."""
    query, key, value = call.read("input"), call.read("key"), call.read("value")
    if call.get("enable_gqa", False) or float(call.get("dropout_p", 0.0)) != 0:
        raise call.refuse("its heads share keys, or it drops values")
    mask = call.read_optional("attn_mask")
    if call.get("is_causal", False):
        mask = call.put(_build_causal_mask(query.shape[-2], key.shape[-2]))
    elif mask is not None and call.holds_booleans("attn_mask"):
        shown = call.add("Where", mask, 0.0, float("-inf"))
        mask = Operand(shown, mask.shape)
    scale = float(call.get("scale", None) or 1 / sqrt(query.shape[-1]))
    return _add_attention(call, (query, key, value), mask, scale)


def _build_causal_mask(queries: int, keys: int) -> Tensor:
    """Build the mask (queries × keys) that lets no query see a later key."""
    later = torch.ones(queries, keys).triu(1).bool()
    return torch.zeros(queries, keys).masked_fill(later, float("-inf"))


def _add_attention(
    call: Call, parts: tuple[Operand, Operand, Operand], mask: Operand | None, scale: float
) -> str:
    """Add the attention of queries to keys, and the values that it chooses."""
    query, key, value = parts
    scores = call.add("MatMul", call.add("Mul", query, scale), transpose(call, key))
    if mask is not None:
        scores = call.add("Add", scores, mask)
    return call.add("MatMul", call.add("Softmax", scores, axis=-1), value)


def write_multihead_attention(call: Call) -> list[str]:
    """Write a module of torch.nn with projections of its own; its weights of attention are not.

    Returns:
        The name of the result alone.
    """
    module = call.called
    assert isinstance(module, nn.MultiheadAttention)
    if module.bias_k is not None or module.add_zero_attn or module.in_proj_weight is None:
        raise call.refuse("it adds keys, or projects keys of another size")
    given = [call.resolve(each) for each in call.node.args]
    given += [call.resolve(call.node.kwargs[k]) for k in ("query", "key", "value")[len(given) :]]
    operands = [call.to_operand(each) for each in given[:3]]
    masked = ("key_padding_mask", "attn_mask")
    if any(call.node.kwargs.get(name) is not None for name in masked) or len(given) > 3:
        raise call.refuse("it has a mask")
    if operands[0].rank != 3:
        raise call.refuse("its input is no batch of sequences")
    heads = module.num_heads
    size = module.embed_dim // heads
    # To batch × heads × tokens × size, whichever of tokens and batch comes first.
    order = (0, 2, 1, 3) if module.batch_first else (1, 2, 0, 3)
    parts = []
    weights, biases = module.in_proj_weight.chunk(3), _split_bias(module)
    for operand, weight, bias in zip(operands, weights, biases, strict=True):
        projected = _project(call, operand.name, weight, bias)
        split = call.add("Reshape", projected, call.put_sizes(0, 0, heads, size))
        parts.append(Operand(call.add("Transpose", split, perm=order), (1, heads, 1, size)))
    joined = _add_attention(call, (parts[0], parts[1], parts[2]), None, 1 / sqrt(size))
    back = [int(dim) for dim in np.argsort(order)]
    tokens = call.add("Transpose", joined, perm=back)
    merged = call.add("Reshape", tokens, call.put_sizes(0, 0, module.embed_dim))
    return [_project(call, merged, module.out_proj.weight, module.out_proj.bias)]


def _split_bias(module: nn.MultiheadAttention) -> list[Tensor | None]:
    bias: Tensor | None = module.in_proj_bias
    return [None] * 3 if bias is None else list(bias.chunk(3))


def _project(call: Call, value: str, weight: Tensor, bias: Tensor | None) -> str:
    product = call.add("MatMul", value, call.put(weight.detach().t().contiguous()))
    return product if bias is None else call.add("Add", product, call.put(bias))
