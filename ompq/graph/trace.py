"""From a module to a traced graph with shapes, or to the line of the network that stopped it."""

from __future__ import annotations

import copy
import inspect
import sys
import traceback
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ompq.errors import OmpqError
from ompq.graph.network import NetworkGraph, analyse
from ompq.graph.plain import follow_changes_in_place, make_layers_plain

_OWN_FOLDER = str(Path(__file__).parent)
_TORCH_FOLDER = str(Path(torch.__file__).parent)
_LAYERS = (nn.Conv2d, nn.Linear)
_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)
# What a network's own code raises where tracing, or an image of this size, does not suit it.
_UNSUITED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)


def trace(network: nn.Module, input_shape: tuple[int, int, int]) -> NetworkGraph:
    """Trace `network` in evaluation mode and find its layers, groups and blocks.

    The network is copied, never changed.

    Args:
        network: any module whose forward takes one batch of images and is traceable by torch.fx.
        input_shape: (channels, height, width) of one image; costs are counted for it.

    Raises:
        OmpqError: the network cannot be traced (names its line), cannot run on this input shape,
            or holds no convolution or linear layer.
    """
    root = copy.deepcopy(network).eval().requires_grad_(False)
    _split_fused_activations(root)
    traced = fx.GraphModule(root, _trace(root), type(network).__name__)
    _record_shapes(traced, input_shape)
    _check_output(traced)
    make_layers_plain(traced)
    follow_changes_in_place(traced)
    return analyse(traced, input_shape)


class _Tracer(fx.Tracer):
    """Stops at the layers and norms (also at subclasses of them) and at torch.nn's own modules."""

    def __init__(self, opaque: tuple[type, ...] = (), wrapped: tuple[Any, ...] = ()) -> None:
        super().__init__(autowrap_functions=wrapped)
        self._opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (*_LAYERS, *_NORMS, *self._opaque)):
            return True
        return super().is_leaf_module(m, module_qualified_name)


def _trace(root: nn.Module) -> fx.Graph:
    arguments = _default_arguments(root)
    errors: list[Exception] = []
    for tracer in _tracers():
        try:
            graph = tracer.trace(root, concrete_args=arguments)
        except _UNSUITED as error:
            errors.append(error)
        else:
            _drop_fixed_arguments(graph)
            return graph
    raise OmpqError(_untraceable(root, errors[0])) from errors[0]


def _tracers() -> Iterator[_Tracer]:
    """Plain tracing; then, with timm in use, with what timm itself declares opaque to torch.fx."""
    yield _Tracer()
    if "timm" in sys.modules:
        from timm.models import get_notrace_functions, get_notrace_modules

        yield _Tracer(tuple(get_notrace_modules()), tuple(get_notrace_functions()))


def _default_arguments(root: nn.Module) -> dict[str, Any] | None:
    """The defaults of what `forward` takes beside the images."""
    parameters = list(inspect.signature(root.forward).parameters.values())[1:]
    required = [
        p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    if required:
        raise OmpqError(
            f"{type(root).__name__}.forward takes {', '.join(required)} beside the images; "
            "wrap the network in a module whose forward takes the images alone"
        )
    return {p.name: p.default for p in parameters if p.default is not p.empty} or None


def _untraceable(root: nn.Module, error: Exception) -> str:
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((_OWN_FOLDER, _TORCH_FOLDER))
    ]
    where = f"{frames[-1].filename}:{frames[-1].lineno}: `{frames[-1].line}`" if frames else "it"
    reason = str(error).split("\n")[0][:160]
    return (
        f"{type(root).__name__} cannot be traced: {where} stops torch.fx ({reason}); "
        "make that line independent of tensor values, or move it into a function marked with "
        "torch.fx.wrap"
    )


def _check_output(traced: fx.GraphModule) -> None:
    output = next(node for node in traced.graph.nodes if node.op == "output")
    (given,) = output.args
    if not isinstance(given, fx.Node) or "shape" not in given.meta:
        raise OmpqError(
            "the network gives more than one tensor; wrap it in a module whose forward gives the "
            "logits alone"
        )


def _drop_fixed_arguments(graph: fx.Graph) -> None:
    """Remove the placeholders (and their checks) of arguments that keep their default."""
    for node in [node for node in graph.nodes if node.op == "placeholder"][1:]:
        checks = [node]
        for check in checks:
            checks.extend(user for user in check.users if user not in checks)
        for check in reversed(checks):
            graph.erase_node(check)


def _split_fused_activations(root: nn.Module) -> None:
    """Turn batch norms that carry their activation (timm's BatchNormAct2d) into a sequence."""
    for name, module in list(root.named_modules()):
        if isinstance(module, _BatchNorm) and isinstance(getattr(module, "act", None), nn.Module):
            parts: OrderedDict[str, nn.Module] = OrderedDict()
            parts["norm"] = _plain_batch_norm(module)
            parts["drop"] = getattr(module, "drop", None) or nn.Identity()
            parts["act"] = module.get_submodule("act")
            root.set_submodule(name, nn.Sequential(parts).eval())


def _plain_batch_norm(fused: _BatchNorm) -> nn.BatchNorm2d:
    plain = nn.BatchNorm2d(fused.num_features, fused.eps, fused.momentum, fused.affine)
    plain.load_state_dict(
        {key: value for key, value in fused.state_dict().items() if key in plain.state_dict()}
    )
    return plain.eval().requires_grad_(False)


class _ShapeRecorder(fx.Interpreter):
    """Runs the graph once and notes each tensor's shape, and who holds several, in the nodes."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            n.meta["shape"] = tuple(value.shape)
        elif isinstance(value, tuple | list):
            n.meta["holds_tensors"] = any(isinstance(part, Tensor) for part in value)
        return value


def _record_shapes(traced: fx.GraphModule, input_shape: tuple[int, int, int]) -> None:
    parameter: Tensor | None = next(traced.parameters(), None)
    device = parameter.device if parameter is not None else None
    image = torch.zeros(1, *input_shape, device=device)
    recorder = _ShapeRecorder(traced)
    recorder.extra_traceback = False
    try:
        with torch.inference_mode():
            recorder.run(image)
    except _UNSUITED as error:
        shape = "×".join(map(str, input_shape))
        reason = str(error).split("\n")[0][:200]
        raise OmpqError(
            f"the network cannot run on one image of {shape}: {reason}; "
            "give images of the size that it was made for"
        ) from error
