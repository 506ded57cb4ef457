"""What a traced network is rewritten to, so that every stage may believe what it reads.

Subclasses of Conv2d and Linear become plain ones where they compute the same, and whoever reads a
value after it was changed in place reads the operation that changed it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.functional import pad

from ompq.graph.operations import operation, plain_forward, tensor_shape


def same_padding(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """Pad with zeros as TensorFlow's `SAME` does: as many outputs as stride goes into the input.

    Args:
        x: n × channels × height × width.
        kernel: of the convolution that follows; height, width.
        stride: of that convolution.
        dilation: of that convolution.
    """
    sides: list[int] = []
    for size, reach, step, spread in zip(x.shape[-2:], kernel, stride, dilation, strict=True):
        missing = max(0, (-(-size // step) - 1) * step + (reach - 1) * spread + 1 - size)
        sides = [missing // 2, missing - missing // 2, *sides]
    return pad(x, sides) if any(sides) else x


def make_layers_plain(traced: GraphModule) -> None:
    """Replace layers of other classes, in place, where random values show that they do the same.

    A convolution that pads by itself becomes `same_padding` and a plain one.

    Args:
        traced: with recorded shapes.
    """
    for node in list(traced.graph.nodes):
        if node.op != "call_module":
            continue
        module = traced.get_submodule(str(node.target))
        if not isinstance(module, nn.Conv2d | nn.Linear) or plain_forward(module):
            continue
        plain = _plain(module)
        shape = tensor_shape(node.all_input_nodes[0]) if node.all_input_nodes else None
        if plain is None or shape is None:
            continue
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = drawn.to(plain.weight)
        with torch.inference_mode():
            expected = module(values.clone())
            if _gives(expected, plain, values):
                traced.set_submodule(str(node.target), plain)
            elif isinstance(plain, nn.Conv2d):
                plain.padding = (0, 0)
                if _gives(expected, plain, same_padding(values, *_geometry(plain))):
                    traced.set_submodule(str(node.target), plain)
                    _pad_before(traced, node, plain)
    traced.recompile()


def _plain(module: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear | None:
    """The base class's own layer with the same parameters; None where the weight is computed."""
    if "weight" not in module._parameters:
        return None
    plain: nn.Conv2d | nn.Linear
    if isinstance(module, nn.Linear):
        plain = nn.Linear(module.in_features, module.out_features, device="meta")
    else:
        plain = nn.Conv2d(
            module.in_channels,
            module.out_channels,
            module.kernel_size,  # type: ignore[arg-type]
            module.stride,  # type: ignore[arg-type]
            module.padding,  # type: ignore[arg-type]
            module.dilation,  # type: ignore[arg-type]
            module.groups,
            padding_mode=module.padding_mode,
            device="meta",
        )
    plain.weight, plain.bias = module.weight, module.bias
    return plain.eval()


def _gives(expected: Tensor, layer: nn.Module, values: Tensor) -> bool:
    try:
        found = layer(values)
    except RuntimeError:
        return False  # an unpadded image may be smaller than the kernel
    same_shape = found.shape == expected.shape
    return same_shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def _geometry(layer: nn.Conv2d) -> tuple[tuple[int, int], ...]:
    return layer.kernel_size, layer.stride, layer.dilation  # type: ignore[return-value]


def _pad_before(traced: GraphModule, call: Node, layer: nn.Conv2d) -> None:
    source = call.all_input_nodes[0]
    with traced.graph.inserting_before(call):
        padded = traced.graph.call_function(same_padding, (source, *_geometry(layer)))
    shape = tensor_shape(source) or ()
    with torch.inference_mode():
        padded.meta["shape"] = tuple(same_padding(torch.empty(shape), *_geometry(layer)).shape)
    call.replace_input_with(source, padded)


def follow_changes_in_place(traced: GraphModule) -> None:
    """Let whoever reads a value after it was changed in place read the operation that changed it.

    What the network computes stays the same; but its graph then tells who computes with what.
    """
    position = {node: number for number, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        if node.all_input_nodes and _in_place(node, traced):
            changed = node.all_input_nodes[0]
            changed.replace_all_uses_with(
                node, delete_user_cb=lambda user, node=node: position[user] > position[node]
            )
    traced.recompile()


def _in_place(node: Node, traced: GraphModule) -> bool:
    """Whether the operation writes its result into its first input."""
    if tensor_shape(node.all_input_nodes[0]) is None:
        return False
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    by_name = name.endswith("_") and not name.endswith("__")
    named_by_operator = operation(node, traced) in ("iadd", "imul", "isub", "itruediv")
    return by_name or named_by_operator or bool(node.kwargs.get("inplace", False))
