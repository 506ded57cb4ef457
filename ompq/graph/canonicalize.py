"""Rewriting of a traced network, so that its nodes are what they look like.

Subclasses of Conv2d and Linear become layers of torch.nn's own classes where they compute what
these do, and what reads a value after an operation changed it in place reads that operation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.functional import pad

from ompq.graph.operations import operation, runs_library_code, tensor_shape


def same_padding(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """Pad images with zeros so that a convolution gives ⌈size / stride⌉ outputs per dimension.

    This is TensorFlow's padding `SAME`; an odd number of zeros puts one more behind than before.

    Args:
        x: Images or features, n × channels × height × width.
        kernel: Kernel height and width of the convolution that follows.
        stride: Stride of that convolution, per dimension.
        dilation: Dilation of that convolution, per dimension.

    >>> tuple(same_padding(torch.ones(1, 3, 8, 9), (3, 3), (2, 2), (1, 1)).shape)
    (1, 3, 9, 11)
    """
    sides: list[int] = []
    for size, reach, step, spread in zip(x.shape[-2:], kernel, stride, dilation, strict=True):
        # `pad` takes the last dimension first.
        missing = max(0, (-(-size // step) - 1) * step + (reach - 1) * spread + 1 - size)
        sides = [missing // 2, missing - missing // 2, *sides]
    return pad(x, sides) if any(sides) else x


def canonicalize_layers(traced: GraphModule) -> None:
    """Replace subclasses of Conv2d and Linear by these, in place, where random values agree.

    A convolution that pads by itself becomes `same_padding` and a Conv2d without padding.

    Args:
        traced: Traced network with recorded shapes.
    """
    for node in list(traced.graph.nodes):
        if node.op != "call_module":
            continue
        module = traced.get_submodule(str(node.target))
        if not isinstance(module, nn.Conv2d | nn.Linear) or runs_library_code(module):
            continue
        layer = _make_base_layer(module)
        shape = tensor_shape(node.all_input_nodes[0]) if node.all_input_nodes else None
        if layer is None or shape is None:
            continue
        # Drawn on the CPU: every device decides by one set of values.
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = drawn.to(layer.weight)
        with torch.inference_mode():
            expected = module(values.clone())
            if _computes(layer, values, expected):
                traced.set_submodule(str(node.target), layer)
            elif isinstance(layer, nn.Conv2d):
                layer.padding = (0, 0)
                if _computes(layer, same_padding(values, *_read_geometry(layer)), expected):
                    traced.set_submodule(str(node.target), layer)
                    _insert_padding(traced, node, layer)
    traced.recompile()


def _make_base_layer(module: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear | None:
    """Make a Conv2d or Linear with a layer's parameters; None where its weight is computed."""
    if "weight" not in module._parameters:
        return None
    layer: nn.Conv2d | nn.Linear
    # On the meta device, the parameters that are replaced below take neither time nor memory.
    if isinstance(module, nn.Linear):
        layer = nn.Linear(module.in_features, module.out_features, device="meta")
    else:
        layer = nn.Conv2d(
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
    layer.weight, layer.bias = module.weight, module.bias
    return layer.eval()


def _computes(layer: nn.Module, values: Tensor, expected: Tensor) -> bool:
    try:
        found = layer(values)
    except RuntimeError:
        return False  # an unpadded image may be smaller than the kernel
    same_shape = found.shape == expected.shape
    return same_shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def _read_geometry(layer: nn.Conv2d) -> tuple[tuple[int, int], ...]:
    """Read kernel, stride and dilation, as `same_padding` takes them."""
    return layer.kernel_size, layer.stride, layer.dilation  # type: ignore[return-value]


def _insert_padding(traced: GraphModule, call: Node, layer: nn.Conv2d) -> None:
    source = call.all_input_nodes[0]
    with traced.graph.inserting_before(call):
        padded = traced.graph.call_function(same_padding, (source, *_read_geometry(layer)))
    shape = tensor_shape(source) or ()
    with torch.inference_mode():
        empty = torch.empty(shape)
        padded.meta["shape"] = tuple(same_padding(empty, *_read_geometry(layer)).shape)
    call.replace_input_with(source, padded)


def follow_in_place_changes(traced: GraphModule) -> None:
    """Replace reads of a value after its change in place by reads of what changed it.

    What the network computes does not change, but its graph then tells what is computed from what.

    Args:
        traced: Traced network with recorded shapes; it is changed in place.
    """
    position = {node: number for number, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        if node.all_input_nodes and _works_in_place(node, traced):
            changed = node.all_input_nodes[0]
            # Earlier readers, and the operation itself, read the value before the change.
            changed.replace_all_uses_with(
                node, delete_user_cb=lambda user, node=node: position[user] > position[node]
            )
    traced.recompile()


def _works_in_place(node: Node, traced: GraphModule) -> bool:
    """Tell whether an operation writes its result into its first input."""
    if tensor_shape(node.all_input_nodes[0]) is None:
        return False
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    # torch.fx writes `x += y` as operator.iadd, whose name does not end with an underscore.
    by_name = name.endswith("_") and not name.endswith("__")
    named_by_operator = operation(node, traced) in ("iadd", "imul", "isub", "itruediv")
    return by_name or named_by_operator or bool(node.kwargs.get("inplace", False))
