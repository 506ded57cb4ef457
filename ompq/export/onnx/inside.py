"""What opaque modules and functions are made of, such as norms with code of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node, Tracer
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _NormBase

from ompq.errors import UNSUITED_ERRORS
from ompq.export.onnx.survey import Survey
from ompq.graph.canonicalize import gather_pieces
from ompq.graph.in_place import follow_in_place_changes
from ompq.graph.layout import ImageLayout
from ompq.graph.operations import carries_values, tensor_shape
from ompq.graph.shapes import record_values
from ompq.integer.forms import find_tensors


class Untraceable(Exception):
    """The code of a module or function does not suit tracing."""


@dataclass(frozen=True)
class Opened:
    """A node as a module of its own.

    Attributes:
        module: Module that takes a list of the tensors which depend on images, and does what the
            node does.
        inputs: Nodes of these tensors, in order.
    """

    module: nn.Module
    inputs: list[Node]

    def draw(self) -> tuple[list[Tensor], list[Tensor]]:
        """Draw what the module takes: for one image, and for that image and another."""
        generator = torch.Generator().manual_seed(0)
        of_one, of_two = [], []
        for node in self.inputs:
            shape, layout = list(tensor_shape(node) or ()), read_layout(node)
            shape[layout.dim] *= 2
            both = torch.randn(shape, generator=generator)
            of_two.append(both)
            of_one.append(layout.join(layout.split(both)[:1]))
        return of_one, of_two


@dataclass(frozen=True)
class TracedInside:
    """What a node is made of.

    Attributes:
        module: Traced network that does what the node does, with recorded shapes.
        inputs: Nodes of what it takes, in order.
    """

    module: GraphModule
    inputs: list[Node]


class _NodeModule(nn.Module):
    """A module that does what one node of a network does.

    Args:
        run: Function that takes the list of the node's inputs.
        held: Module that the node calls; None where it calls none.
    """

    def __init__(self, run: Callable[..., Any], held: nn.Module | None) -> None:
        super().__init__()
        self.held = held
        self._run = run

    def forward(self, values: Any) -> Any:
        """Compute the node's value from the list of its inputs."""
        return self._run(values)


class _InnerTracer(Tracer):
    """A tracer that stops at torch.nn's own modules, except at the one to be opened."""

    def __init__(self, opened: nn.Module | None) -> None:
        super().__init__()
        self._opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m is not self._opened and super().is_leaf_module(m, module_qualified_name)


def find_constant(node: Node, module: GraphModule, survey: Survey) -> Any:
    """Find the value of a node that does not depend on images; None where it does.

    Args:
        node: Node of a traced network.
        module: The network.
        survey: Its constants.
    """
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return getattr(module.get_submodule(owner), name)
    return survey.constants.get(node.name)


def open_node(node: Node, module: GraphModule, survey: Survey) -> Opened:
    """Make a module of a node; what does not depend on images is held in it.

    Args:
        node: Node that calls a module, a function or a method.
        module: Network that it belongs to, with recorded shapes.
        survey: The network's constants.
    """
    grows = survey.growing
    inputs = [
        source
        for source in node.all_input_nodes
        if tensor_shape(source) is not None and (carries_values(source) or source.name in grows)
    ]
    held = module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def run(values: Any) -> Any:
        # A list that is being traced has no length.
        given = {source: values[number] for number, source in enumerate(inputs)}

        def put(source: Node) -> Any:
            return given[source] if source in given else find_constant(source, module, survey)

        args, kwargs = map_arg(node.args, put), map_arg(node.kwargs, put)
        if held is not None:
            return held(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    return Opened(_NodeModule(run, held).eval(), inputs)


def trace_inside(node: Node, module: GraphModule, survey: Survey) -> TracedInside:
    """Trace the code of a module or function that a node calls.

    Args:
        node: Node of the network.
        module: Network that it belongs to, with recorded shapes.
        survey: The network's constants.

    Raises:
        Untraceable: Its code does not suit tracing, or is a kernel of PyTorch's.
    """
    opened = open_node(node, module, survey)
    sizes = [source for source in node.all_input_nodes if source.name in survey.growing]
    if any(tensor_shape(source) is None for source in sizes):
        raise Untraceable("it takes the number of images")
    of_one, of_two = opened.draw()
    try:
        traced = _trace(opened)
        _check_opened(node, traced)
        record_values(traced, of_one, of_two)
        gather_pieces(traced)
        follow_in_place_changes(traced)
        with torch.inference_mode():
            found, expected = find_tensors(traced(*of_two)), find_tensors(opened.module(of_two))
    except UNSUITED_ERRORS as error:
        raise Untraceable(str(error).split("\n")[0][:160]) from error
    if len(expected) != 1 or not torch.allclose(found[0], expected[0], 1e-3, 1e-4):
        raise Untraceable("it gives several tensors, or computes otherwise when it is traced")
    return TracedInside(traced, opened.inputs)


def _check_opened(node: Node, traced: GraphModule) -> None:
    """Refuse what tracing has not opened: it would be opened without end."""
    for inner in traced.graph.nodes:
        if inner.op == node.op != "call_module" and inner.target == node.target:
            raise Untraceable("it is a kernel of PyTorch's")


def _trace(opened: Opened) -> GraphModule:
    held = opened.module.held
    module = held if isinstance(held, nn.Module) else None
    with _without_check(module):
        graph = _InnerTracer(module).trace(opened.module)
    (values,) = (node for node in graph.nodes if node.op == "placeholder")
    for number in range(len(opened.inputs)):
        with graph.inserting_before(values):
            single = graph.placeholder(f"value_{number}")
        for taken in [user for user in values.users if user.args[1] == number]:
            taken.replace_all_uses_with(single)
            graph.erase_node(taken)
    graph.erase_node(values)
    return GraphModule(opened.module, graph)


@contextmanager
def _without_check(module: nn.Module | None) -> Iterator[None]:
    """Let a norm not check how many dimensions its input has, which tracing cannot tell."""
    if not isinstance(module, _NormBase):
        yield
        return
    module._check_input_dim = lambda _: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module._check_input_dim


def read_layout(node: Node) -> ImageLayout:
    """Read where the images are in a node's value."""
    layout = node.meta.get("layout", ImageLayout())
    if layout is None:
        raise Untraceable("where the images are in its input cannot be told")
    found: ImageLayout = layout
    return found
