"""Tracing of a module to a graph with shapes, or to the line of the network that stops it."""

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
from ompq.graph.canonicalize import canonicalize_layers, follow_in_place_changes
from ompq.graph.network import NetworkGraph, analyse

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
    """Trace a network in evaluation mode and find its layers, groups and blocks.

    The network is copied, never changed.

    Args:
        network: Module whose forward takes one batch of images and is traceable by torch.fx.
        input_shape: Channels, height and width of one image; costs are counted for it.

    Raises:
        OmpqError: the network cannot be traced (names its line), cannot run on this input shape,
            or holds no convolution or linear layer.
    """
    root = copy.deepcopy(network).eval().requires_grad_(False)
    # The order matters: rewriting needs the shapes, the view needs the rewritten network.
    _split_fused_activations(root)
    traced = fx.GraphModule(root, _trace(root), type(network).__name__)
    _record_shapes(traced, input_shape)
    _check_output(traced)
    canonicalize_layers(traced)
    follow_in_place_changes(traced)
    return analyse(traced, input_shape)


def trace_for(network: nn.Module | NetworkGraph, images: Tensor) -> NetworkGraph:
    """Trace a network for images of the size of these (n × channels × height × width).

    A network that is traced already is returned as it is.

    Raises:
        OmpqError: The images are of another shape, or the network cannot be traced.
    """
    if isinstance(network, NetworkGraph):
        return network
    if images.dim() != 4:
        shape = "×".join(map(str, images.shape))
        raise OmpqError(f"`images` is {shape}; give n × channels × height × width")
    channels, height, width = images.shape[1:]
    return trace(network, (channels, height, width))


class _Tracer(fx.Tracer):
    """A tracer that stops at layers and norms, at subclasses of them, and at torch.nn's modules.

    Args:
        opaque: Further classes of modules that are not traced into.
        wrapped: Functions that are not traced into.
    """

    def __init__(self, opaque: tuple[type, ...] = (), wrapped: tuple[Any, ...] = ()) -> None:
        super().__init__(autowrap_functions=wrapped)
        self._opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (*_LAYERS, *_NORMS, *self._opaque)):
            return True
        return super().is_leaf_module(m, module_qualified_name)


def _trace(root: nn.Module) -> fx.Graph:
    arguments = _read_default_arguments(root)
    errors: list[Exception] = []
    for tracer in _make_tracers():
        try:
            graph = tracer.trace(root, concrete_args=arguments)
        except _UNSUITED as error:
            errors.append(error)
        else:
            _drop_fixed_arguments(graph)
            return graph
    raise OmpqError(_explain_failure(root, errors[0])) from errors[0]


def _make_tracers() -> Iterator[_Tracer]:
    """Make a tracer; then, with timm in use, one that spares what timm declares opaque."""
    yield _Tracer()
    # timm is only asked where the network may be its own: importing it takes seconds.
    if "timm" in sys.modules:
        from timm.models import get_notrace_functions, get_notrace_modules

        yield _Tracer(tuple(get_notrace_modules()), tuple(get_notrace_functions()))


def _read_default_arguments(root: nn.Module) -> dict[str, Any] | None:
    """Read the defaults of what `forward` takes beside the images."""
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


def _explain_failure(root: nn.Module, error: Exception) -> str:
    """Name the line of the network's own code at which tracing failed, and what to do."""
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
        # The list grows while it is read: users of users; then all go, the last first.
        checks = [node]
        for check in checks:
            checks.extend(user for user in check.users if user not in checks)
        for check in reversed(checks):
            graph.erase_node(check)


def _split_fused_activations(root: nn.Module) -> None:
    """Turn batch norms with an activation inside (timm's BatchNormAct2d) into a sequence."""
    for name, module in list(root.named_modules()):
        if isinstance(module, _BatchNorm) and isinstance(getattr(module, "act", None), nn.Module):
            steps: OrderedDict[str, nn.Module] = OrderedDict()
            steps["norm"] = _extract_batch_norm(module)
            steps["drop"] = getattr(module, "drop", None) or nn.Identity()
            steps["act"] = module.get_submodule("act")
            root.set_submodule(name, nn.Sequential(steps).eval())


def _extract_batch_norm(fused: _BatchNorm) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(fused.num_features, fused.eps, fused.momentum, fused.affine)
    norm.load_state_dict(
        {key: value for key, value in fused.state_dict().items() if key in norm.state_dict()}
    )
    return norm.eval().requires_grad_(False)


class _ShapeRecorder(fx.Interpreter):
    """An interpreter that notes in each node the shape of its tensor, or that it holds several."""

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
