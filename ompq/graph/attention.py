"""Attention opened: what PyTorch computes in one call becomes its products and its softmax.

Layers of attention then are layers like others, and products are operations with a form of their
own.
"""

from __future__ import annotations

from inspect import signature
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from ompq.graph.arguments import read_arguments
from ompq.graph.operations import operation, runs_library_code, tensor_shape
from ompq.graph.training_mode import TRAINING_PATH, TrainingOnly, read_training_argument

# Stands for minus infinity in masks: nothing that is this far below the largest value is left.
_MASKED = -1e4


class OpenAttention(nn.Module):
    """`nn.MultiheadAttention` of a value with itself, whose steps a trace finds.

    Args:
        whole: The module; parameters are shared with it. Where it is called otherwise than on one
            value, it computes itself.
    """

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = whole.embed_dim, whole.num_heads
        self.head_dim, self.batch_first = whole.head_dim, whole.batch_first
        self.in_proj = nn.Linear(self.embed_dim, 3 * self.embed_dim, device="meta")
        assert whole.in_proj_weight is not None
        self.in_proj.weight, self.in_proj.bias = whole.in_proj_weight, whole.in_proj_bias
        self.dropout = nn.Dropout(whole.dropout)
        self.out_proj = whole.out_proj
        self.whole = whole

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Attend as `nn.MultiheadAttention` does; returns its output, and weights where asked."""
        bound = signature(nn.MultiheadAttention.forward).bind(self, *args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        query, key, value = (given[name] for name in ("query", "key", "value"))
        mask = _read_mask(given["attn_mask"])
        unknown = mask is None and given["attn_mask"] is not None
        if query is not key or key is not value or given["key_padding_mask"] is not None or unknown:
            return self.whole(*args, **kwargs)
        x = query if self.batch_first else query.transpose(0, 1)
        q, k, v = (self._split(part) for part in self.in_proj(x).chunk(3, dim=-1))
        scores = torch.matmul(q, k.transpose(-2, -1)) * (1 / sqrt(self.head_dim))
        scores = scores if mask is None else scores + mask
        weights = self.dropout(torch.softmax(scores, dim=-1))
        out = self.out_proj(torch.matmul(weights, v).transpose(1, 2).flatten(2))
        out = out if self.batch_first else out.transpose(0, 1)
        if not given["need_weights"]:
            return out, None
        return out, weights.mean(dim=1) if given["average_attn_weights"] else weights

    def _split(self, x: Any) -> Any:
        """Split rows of channels into heads: images × heads × rows × channels."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


class OpenEncoderLayer(nn.Module):
    """`nn.TransformerEncoderLayer` without its fast path, whose steps a trace finds.

    Args:
        whole: The layer; its modules are shared with it.
    """

    self_attn: nn.Module
    norm1: nn.Module
    norm2: nn.Module
    linear1: nn.Module
    linear2: nn.Module
    dropout: nn.Module
    dropout1: nn.Module
    dropout2: nn.Module

    def __init__(self, whole: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        for name, module in whole.named_children():
            self.add_module(name, module)
        self.norm_first, self.activation = whole.norm_first, whole.activation

    def forward(
        self,
        src: Any,
        src_mask: Any = None,
        src_key_padding_mask: Any = None,
        is_causal: bool = False,
    ) -> Any:
        """Compute the layer of images × rows × channels, or of rows × images × channels."""
        given = src_mask, src_key_padding_mask, is_causal
        if self.norm_first:
            x = src + self._attend(self.norm1(src), *given)
            return x + self._feed(self.norm2(x))
        x = self.norm1(src + self._attend(src, *given))
        return self.norm2(x + self._feed(x))

    def _attend(self, x: Any, mask: Any, padding: Any, is_causal: bool) -> Any:
        attended = self.self_attn(
            x,
            x,
            x,
            attn_mask=mask,
            key_padding_mask=padding,
            need_weights=False,
            is_causal=is_causal,
        )
        return self.dropout1(attended[0])

    def _feed(self, x: Any) -> Any:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class OpenEncoder(nn.Module):
    """`nn.TransformerEncoder` without nested tensors, whose steps a trace finds.

    Args:
        whole: The encoder; its modules are shared with it.
    """

    def __init__(self, whole: nn.TransformerEncoder) -> None:
        super().__init__()
        self.layers, self.norm = whole.layers, whole.norm

    def forward(
        self,
        src: Any,
        mask: Any = None,
        src_key_padding_mask: Any = None,
        is_causal: bool | None = None,
    ) -> Any:
        """Compute one layer after the other."""
        for layer in self.layers:
            src = layer(
                src,
                src_mask=mask,
                src_key_padding_mask=src_key_padding_mask,
                is_causal=bool(is_causal),
            )
        return src if self.norm is None else self.norm(src)


def open_attention(root: nn.Module) -> None:
    """Let a trace find the steps of PyTorch's modules of attention, in place.

    Args:
        root: Network in evaluation mode; modules that compute by other code stay as they are.
    """
    for path, module in list(root.named_modules()):
        if not path or not runs_library_code(module):
            continue
        if isinstance(module, nn.MultiheadAttention) and _can_open(module):
            root.set_submodule(path, OpenAttention(module).train(module.training))
    # The layers hold the attention that was set in before, and the encoders the layers.
    for path, module in list(root.named_modules()):
        if path and isinstance(module, nn.TransformerEncoderLayer) and runs_library_code(module):
            root.set_submodule(path, OpenEncoderLayer(module).train(module.training))
    for path, module in list(root.named_modules()):
        if path and isinstance(module, nn.TransformerEncoder) and runs_library_code(module):
            root.set_submodule(path, OpenEncoder(module).train(module.training))


def _can_open(module: nn.MultiheadAttention) -> bool:
    plain = module.bias_k is None and module.bias_v is None and not module.add_zero_attn
    return plain and module.in_proj_weight is not None


def _read_mask(mask: Any) -> Tensor | None:
    """Return a mask of numbers to add, without infinity; None for none, or of another kind."""
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape).masked_fill(mask.cpu(), _MASKED).to(mask.device)
    return mask.clamp_min(_MASKED) if mask.is_floating_point() else None


def open_products(traced: GraphModule) -> bool:
    """Write `scaled_dot_product_attention` as two products and a softmax, in place.

    Args:
        traced: Traced network with recorded shapes; those of new nodes are not recorded.

    Returns:
        Whether the network had any.
    """
    found = [
        node
        for node in traced.graph.nodes
        if node.op == "call_function"
        and operation(node, traced) == "scaled_dot_product_attention"
        and _write_products(traced, node)
    ]
    for node in found:
        traced.graph.erase_node(node)
    if found:
        traced.recompile()
    return bool(found)


def _write_products(traced: GraphModule, node: Node) -> bool:
    """Write one attention in front of its node, for its readers; tell whether it could be."""
    given = read_arguments(node, traced)
    query, key, value = (given.get(name) for name in ("input", "key", "value"))
    parts = [part for part in (query, key, value) if isinstance(part, Node)]
    shapes = [shape for shape in map(tensor_shape, parts) if shape is not None]
    if len(shapes) < 3 or given.get("enable_gqa") or given.get("dropout_p"):
        return False
    mask = _find_mask(traced, node, given, shapes)
    if mask is False:
        return False
    scale = given.get("scale")
    factor = 1 / sqrt(shapes[0][-1]) if scale is None else scale
    if not isinstance(factor, int | float):
        return False
    before = set(traced.graph.nodes)
    with traced.graph.inserting_before(node):
        turned = traced.graph.call_method("transpose", (parts[1], -2, -1))
        scores = traced.graph.call_function(torch.matmul, (parts[0], turned))
        scores = traced.graph.call_function(torch.mul, (scores, factor))
        if mask is not None:
            scores = traced.graph.call_function(torch.add, (scores, mask))
        weights = traced.graph.call_function(torch.softmax, (scores, -1))
        dropout = read_training_argument(node, 4, "dropout_p")
        if dropout:
            path = f"{TRAINING_PATH}.{node.name}"
            traced.add_submodule(path, TrainingOnly(nn.Dropout(dropout)).eval())
            weights = traced.graph.call_module(path, (weights,))
        attended = traced.graph.call_function(torch.matmul, (weights, parts[2]))
    for made in set(traced.graph.nodes) - before:
        made.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
    node.replace_all_uses_with(attended)
    return True


def _find_mask(
    traced: GraphModule, node: Node, given: dict[str, Any], shapes: list[tuple[int, ...]]
) -> Node | bool | None:
    """Find what is added to the scores: a node, None for nothing, False where it cannot be."""
    mask = given.get("attn_mask")
    if given.get("is_causal"):
        path = f"{node.name}_mask"
        above = torch.ones(shapes[0][-2], shapes[1][-2], dtype=torch.bool).triu(1)
        device = next(traced.parameters()).device
        traced.register_buffer(
            path, torch.zeros(above.shape).masked_fill(above, _MASKED).to(device)
        )
        with traced.graph.inserting_before(node):
            return traced.graph.get_attr(path)
    if mask is None:
        return None
    kind = mask.meta.get("dtype") if isinstance(mask, Node) else None
    return mask if kind is not None and kind.is_floating_point else False
