"""Rewriting of a traced network, so that its nodes are what they look like.

Subclasses of Conv2d, Linear and batch norm become modules of torch.nn's own classes where they
compute what these do; pieces are taken of a tuple right where it is made; logits are n × classes;
what reads a value after an operation changed it in place reads that operation.
"""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.functional import pad
from torch.nn.modules.batchnorm import _BatchNorm

from ompq.errors import UNSUITED_ERRORS
from ompq.graph.exclusions import Exclusions
from ompq.graph.operations import (
    NORM_TYPES,
    carries_values,
    operation,
    runs_library_code,
    tensor_shape,
)
from ompq.graph.shapes import copy_shape


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


def canonicalize_modules(traced: GraphModule, exclusions: Exclusions) -> None:
    """Replace subclasses of Conv2d, Linear and batch norm, in place, where random values agree.

    A convolution that pads by itself becomes `same_padding` and a Conv2d without padding.

    Args:
        traced: Traced network with recorded shapes.
        exclusions: Modules that stay what they are.
    """
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or node.target in exclusions.modules:
            continue
        module = traced.get_submodule(str(node.target))
        shape = tensor_shape(node.all_input_nodes[0]) if node.all_input_nodes else None
        if shape is None or runs_library_code(module):
            continue
        plain = _make_plain(module)
        if plain is None:
            continue
        values = _draw(shape, next(plain.parameters(), None))
        with torch.inference_mode():
            expected = module(values.clone())
            if _computes(plain, values, expected):
                traced.set_submodule(str(node.target), plain)
            elif isinstance(plain, nn.Conv2d):
                plain.padding = (0, 0)
                if _computes(plain, same_padding(values, *_read_geometry(plain)), expected):
                    traced.set_submodule(str(node.target), plain)
                    _insert_padding(traced, node, plain)
    traced.recompile()


def _draw(shape: tuple[int, ...], like: Tensor | None) -> Tensor:
    """Draw random values on the CPU: every device decides by one set of values."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    # Far enough to both sides that a clip in the module would show.
    return (3 * drawn).to(like) if like is not None else 3 * drawn


def _make_plain(module: nn.Module) -> nn.Module | None:
    """Make the module of torch.nn that a subclass's object may compute like; None without one."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return _make_base_layer(module)
    return _make_base_norm(module) if isinstance(module, _BatchNorm) else None


def _make_base_norm(module: _BatchNorm) -> _BatchNorm | None:
    """Make a batch norm with another one's parameters and statistics; None where it keeps none."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    kind = next((kind for kind in kinds if isinstance(module, kind)), nn.BatchNorm2d)
    if module.running_mean is None or "running_mean" not in module._buffers:
        return None
    norm = kind(module.num_features, module.eps, module.momentum, device="meta")
    norm.weight, norm.bias = module.weight, module.bias
    norm.running_mean, norm.running_var = module.running_mean, module.running_var
    norm.num_batches_tracked = module.num_batches_tracked
    return norm.eval()


def split_fused_norms(root: nn.Module) -> None:
    """Turn norms with an activation inside (timm's BatchNormAct2d) into a sequence, in place.

    Where the sequence computes otherwise than the module did on random values, the module stays.

    Args:
        root: Network in evaluation mode.
    """
    for name, module in list(root.named_modules()):
        if not isinstance(module, NORM_TYPES) or not name:
            continue
        activation, norm = getattr(module, "act", None), _take_activation(module)
        if not isinstance(activation, nn.Module) or norm is None:
            continue
        steps: OrderedDict[str, nn.Module] = OrderedDict(norm=norm)
        steps["drop"] = getattr(module, "drop", None) or nn.Identity()
        steps["act"] = activation
        sequence = nn.Sequential(steps).eval()
        weight = next(module.parameters(), None)
        values = _draw((2, 8 if weight is None else weight.numel(), 4, 4), weight)
        try:
            with torch.inference_mode():
                same = _computes(sequence, values.clone(), module(values.clone()))
        except UNSUITED_ERRORS:
            continue
        if same:
            root.set_submodule(name, sequence)


def _take_activation(module: nn.Module) -> nn.Module | None:
    """Make the norm that is left of one with an activation; None where that cannot be told."""
    if isinstance(module, _BatchNorm):
        return _make_base_norm(module)
    norm = copy.copy(module)
    inside = {"act": nn.Identity(), "drop": nn.Identity()}
    norm._modules = {**module._modules, **{k: v for k, v in inside.items() if k in norm._modules}}
    return norm


def flatten_logits(traced: GraphModule) -> None:
    """Make logits n × classes × 1 × 1 (of a convolution as classifier) n × classes, in place."""
    output = next(node for node in traced.graph.nodes if node.op == "output")
    logits = output.all_input_nodes[0]
    shape = tensor_shape(logits) or ()
    if len(shape) > 2 and set(shape[2:]) == {1}:
        with traced.graph.inserting_before(output):
            flat = traced.graph.call_method("flatten", (logits, 1))
        copy_shape(flat, logits)
        flat.meta["shape"] = shape[:2]
        output.replace_input_with(logits, flat)
        traced.recompile()


def gather_pieces(traced: GraphModule) -> None:
    """Take the pieces of a tuple (of `split`, `chunk`, …) right behind what makes it, in place.

    No cut of the network then has to pass on anything but tensors.
    """
    for node in list(traced.graph.nodes):
        taken = operation(node, traced) in ("getitem", "getattr") and node.op == "call_function"
        if taken and len(node.all_input_nodes) == 1 and carries_values(node):
            source = node.all_input_nodes[0]
            if tensor_shape(source) is None:
                source.append(node)
    traced.recompile()


def _make_base_layer(module: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear | None:
    """Make a Conv2d or Linear with a layer's parameters; None where its weight is computed."""
    if "weight" not in module._parameters or "bias" not in module._parameters:
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
    copy_shape(padded, source)
    with torch.inference_mode():
        empty = torch.empty(shape)
        padded.meta["shape"] = tuple(same_padding(empty, *_read_geometry(layer)).shape)
    call.replace_input_with(source, padded)
