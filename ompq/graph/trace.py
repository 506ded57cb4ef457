"""Tracing of a module to a graph with shapes, or to the line of the network that stops it."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch
from torch import fx, nn
from torch.jit import ScriptModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from ompq.errors import UNSUITED_ERRORS, OmpqError
from ompq.graph.attention import open_attention, open_products
from ompq.graph.canonicalize import (
    canonicalize_modules,
    flatten_logits,
    gather_pieces,
    split_fused_norms,
)
from ompq.graph.copying import copy_module, copy_structure
from ompq.graph.einsum import open_einsums
from ompq.graph.exclusions import Exclusions
from ompq.graph.functions import (
    add_opposites,
    call_layers,
    count_padding,
    fix_types,
    read_sizes_alone,
)
from ompq.graph.in_place import follow_in_place_changes
from ompq.graph.network import NetworkGraph, analyse
from ompq.graph.operations import has_unknown_shape
from ompq.graph.shapes import record_shapes
from ompq.graph.tracers import LayerTracer, ShapeTracer, is_opaque
from ompq.graph.training_mode import compare_with_training, keep_training_steps

_OWN_FOLDER = str(Path(__file__).parent)
_TORCH_FOLDER = str(Path(torch.__file__).parent)


def trace(
    network: nn.Module,
    input_shape: tuple[int, int, int],
    exclusions: Exclusions | None = None,
) -> NetworkGraph:
    """Trace a network in evaluation mode and find its layers, groups and blocks.

    The network is copied, never changed.

    Args:
        network: Module whose forward takes one batch of images and is traceable by torch.fx; what
            `DataParallel`, `AveragedModel` or `torch.compile` hold is taken out.
        input_shape: Channels, height and width of one image; costs are counted for it.
        exclusions: What is to be left as it is; None for nothing.

    Raises:
        OmpqError: the network cannot be traced (names its line), cannot run on this input shape,
            or holds no convolution or linear layer.
    """
    network = _unwrap(network)
    _check_usable(network)
    _check_shape(input_shape)
    original = _copy(network).eval().requires_grad_(False)
    exclusions = exclusions or Exclusions()
    # The order matters: rewriting needs the shapes, the view needs the rewritten network.
    root = copy_structure(original)
    split_fused_norms(root)
    open_attention(root)
    keep_training_steps(root)
    _take_images_alone(root)
    trace_module = partial(_trace, input_shape)
    traced = fx.GraphModule(root, trace_module(root), type(network).__name__)
    _give_constants_memory(traced)
    compare_with_training(traced, root, trace_module)
    _record_shapes(traced, input_shape)
    opened = [open_step(traced) for open_step in (open_products, open_einsums, count_padding)]
    if any(opened):
        _record_shapes(traced, input_shape)
    _drop_unread_weights(traced)
    _check_output(traced)
    flatten_logits(traced)
    call_layers(traced, root)
    fix_types(traced)
    read_sizes_alone(traced)
    canonicalize_modules(traced, exclusions)
    gather_pieces(traced)
    follow_in_place_changes(traced)
    add_opposites(traced)
    return analyse(traced, input_shape, original, exclusions)


def _copy(network: nn.Module) -> nn.Module:
    try:
        return copy_module(network)
    except (TypeError, PickleError) as error:
        raise OmpqError(
            f"{type(network).__name__} cannot be copied: {error}; keep compiled functions, locks "
            "and open files outside of the module"
        ) from error


def _trace(input_shape: tuple[int, int, int], root: nn.Module) -> fx.Graph:
    arguments = _read_default_arguments(root)
    errors: list[Exception] = []
    for tracer in _make_tracers(input_shape):
        try:
            graph = tracer.trace(root, concrete_args=arguments)
        except UNSUITED_ERRORS as error:
            errors.append(error)
        else:
            graph = _open_functions(input_shape, root, arguments, graph)
            _drop_fixed_arguments(graph)
            return graph
    # The first tracer may have stopped at a question about shapes, which the second one answers.
    raise OmpqError(_explain_failure(root, errors[1])) from errors[1]


def _open_functions(
    input_shape: tuple[int, int, int],
    root: nn.Module,
    arguments: dict[str, Any] | None,
    graph: fx.Graph,
) -> fx.Graph:
    """Return a trace that enters functions called as a whole (`torch.fx.wrap`), if it can."""
    if not any(n.op == "call_function" and is_opaque(n.target) for n in graph.nodes):
        return graph
    try:
        opened = ShapeTracer(input_shape, opens_functions=True).trace(root, arguments)
    except UNSUITED_ERRORS:
        return graph
    for node in opened.nodes:
        # torch.fx takes what an entered function gives for a call of that function.
        node.meta.pop("is_wrapped", None)
    return opened


def _make_tracers(input_shape: tuple[int, int, int]) -> Iterator[LayerTracer]:
    """Make a tracer; then those that know shapes, then one that spares what timm calls opaque."""
    yield LayerTracer()
    yield ShapeTracer(input_shape)
    yield ShapeTracer(input_shape, reads_buffers=True)
    # timm is only asked where the network may be its own: importing it takes seconds.
    if "timm" in sys.modules:
        from timm.models import get_notrace_functions, get_notrace_modules

        yield LayerTracer(tuple(get_notrace_modules()), tuple(get_notrace_functions()))


def _give_constants_memory(traced: fx.GraphModule) -> None:
    """Give constants whose elements share memory (expanded ones) memory of their own, in place."""
    for module in traced.modules():
        for name, held in module._buffers.items():
            if held is not None and 0 in held.stride():
                module._buffers[name] = held.contiguous()


def _drop_unread_weights(traced: fx.GraphModule) -> None:
    """Remove what opened attention gives beside its output, and nobody reads, in place."""
    for node in reversed(list(traced.graph.nodes)):
        if node.op == "call_method" and node.target == "mean" and not node.users:
            traced.graph.erase_node(node)
    traced.recompile()


def _take_images_alone(root: nn.Module) -> None:
    """Let a network whose forward takes any number of arguments take images, in place."""
    kinds = {p.kind for p in inspect.signature(root.forward).parameters.values()}
    if not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        return
    own = type(root)

    def forward(self: nn.Module, images: Any) -> Any:
        return own.forward(self, images)

    root.__class__ = type(own.__name__, (own,), {"forward": forward, "__module__": own.__module__})


def _read_default_arguments(root: nn.Module) -> dict[str, Any] | None:
    """Read the defaults of what `forward` takes beside the images."""
    parameters = list(inspect.signature(root.forward).parameters.values())[1:]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    required = [p.name for p in parameters if p.default is p.empty and p.kind in kinds]
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
        "make that line independent of tensor values and of the number of images, or move it "
        "into a function marked with torch.fx.wrap"
    )


def _check_output(traced: fx.GraphModule) -> None:
    output = next(node for node in traced.graph.nodes if node.op == "output")
    (given,) = output.args
    if not isinstance(given, fx.Node) or "shape" not in given.meta:
        raise OmpqError(
            f"the network gives {_describe_output(given)}; wrap it in a module whose forward gives "
            "the logits alone"
        )
    if not given.meta["from_images"]:
        raise OmpqError("the network's output does not depend on its images; check its forward")


def _describe_output(given: Any) -> str:
    """Say what a network gives instead of one tensor."""
    if isinstance(given, dict):
        return f"a dictionary of {', '.join(map(str, given))}"
    if isinstance(given, tuple | list):
        parts = ", ".join("None" if part is None else "a tensor" for part in given)
        return f"a {type(given).__name__} of {len(given)} ({parts})"
    return "nothing" if given is None else "something else than one tensor"


def _drop_fixed_arguments(graph: fx.Graph) -> None:
    """Remove the placeholders (and their checks) of arguments that keep their default."""
    for node in [node for node in graph.nodes if node.op == "placeholder"][1:]:
        # The list grows while it is read: users of users; then all go, the last first.
        checks = [node]
        for check in checks:
            checks.extend(user for user in check.users if user not in checks)
        for check in reversed(checks):
            graph.erase_node(check)


def _record_shapes(traced: fx.GraphModule, input_shape: tuple[int, int, int]) -> None:
    try:
        record_shapes(traced, input_shape)
    except UNSUITED_ERRORS as error:
        shape = "×".join(map(str, input_shape))
        reason = str(error).split("\n")[0][:200]
        raise OmpqError(
            f"the network cannot run on one image of {shape}, or on two: {reason}; "
            "give images of the size that it was made for"
        ) from error


def _unwrap(network: nn.Module) -> nn.Module:
    """Return the network itself out of what parallel training, averaging and compiling make."""
    while True:
        if isinstance(network, nn.DataParallel | DistributedDataParallel | AveragedModel):
            network = network.module
        elif isinstance(getattr(network, "_orig_mod", None), nn.Module):
            network = network.get_submodule("_orig_mod")
        else:
            return network


def _check_shape(input_shape: Any) -> None:
    """Refuse what is no shape of an image, such as images themselves."""
    given = list(input_shape) if isinstance(input_shape, tuple | list | torch.Size) else []
    if len(given) != 3 or not all(isinstance(size, int) and size > 0 for size in given):
        what = type(input_shape).__name__ if not given else str(tuple(given))
        raise OmpqError(
            f"`input_shape` is {what}; give channels, height and width of one image: (3, 224, 224)"
        )


def _check_usable(network: nn.Module) -> None:
    """Refuse what has no code to trace, no weights yet, or numbers that are not float32."""
    if isinstance(network, ScriptModule):
        raise OmpqError(
            f"{network.original_name} is TorchScript, whose layers cannot be taken apart; give the "
            "nn.Module that it was made from"
        )
    for name, module in network.named_modules():
        if has_unknown_shape(module):
            raise OmpqError(
                f"{name} is a {type(module).__name__} that no image has passed yet, and so has no "
                "weights; run the network on an image once, then load its weights"
            )
    kinds = {p.dtype for p in network.parameters() if p.is_floating_point()}
    if kinds and torch.float32 not in kinds:
        named = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise OmpqError(f"the network's parameters are {named}; give it in float32 (`.float()`)")
