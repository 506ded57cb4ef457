"""The steps of a program as they are found, and what becomes of values between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from torch.fx import GraphModule, Node

from ompq.errors import OmpqError
from ompq.export.c.copies import plan_copy
from ompq.export.c.operations import find_spread
from ompq.export.c.program import (
    Action,
    Bounds,
    Buffer,
    Channels,
    Computation,
    Map,
    Operand,
    Region,
    Step,
    Task,
    View,
)
from ompq.export.c.stages import add_stage
from ompq.export.c.views import Value, find_first, is_in_order, rearrange
from ompq.graph.operations import operation
from ompq.integer.network import locate


class Recorder:
    """Notes the steps of a program.

    Args:
        module: Network whose steps they are.

    Attributes:
        steps: The steps, each behind those whose results it reads.
    """

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.steps: list[Step] = []
        self._numbering = {node: place for place, node in enumerate(module.graph.nodes)}
        self._laid: dict[View, Region] = {}

    def number(self, node: Node) -> int:
        """Return the place of a node in the network's order."""
        return self._numbering[node]

    def refuse(self, node: Node) -> OmpqError:
        """Return the error that names a node which has no form in C."""
        where, what = locate(node), operation(node, self.module)
        return OmpqError(f"{where} ({what}) has no form in C; export this network to ONNX")

    def store(self, value: Value, target: Region | None = None) -> View:
        """Let a computation's results be stored; a view is stored already.

        Args:
            value: The value.
            target: Where its results go; None for a buffer of their own.
        """
        if isinstance(value, View):
            return value
        target = target or Region(Buffer(value.count, value.bounds))
        self.steps.append(Step(value, target))
        return View(target.buffer, value.places)

    def lay(self, node: Node, value: Value) -> Region:
        """Let a value lie in memory, its elements neighbours."""
        view = self.store(value)
        buffer = view.buffer
        if buffer is None:
            raise self.refuse(node)
        if view not in self._laid:
            start = view.start
            if start is None:
                task = plan_copy(view)
                copied = self.begin(node, task, Region(buffer), view.shape, buffer.bounds)
                buffer = self.store(copied).buffer or buffer
            self._laid[view] = Region(buffer, start or 0)
        return self._laid[view]

    def begin(
        self,
        node: Node,
        task: Task,
        source: Region,
        shape: tuple[int, ...],
        bounds: Bounds,
    ) -> Computation:
        """Begin a computation.

        Args:
            node: Node for which it is.
            task: What is computed.
            source: Integers that it is computed from.
            shape: Shape of the results for one image.
            bounds: The least and the largest result.
        """
        return Computation(task, source, shape, bounds, locate(node), self.number(node))

    def extend(
        self, node: Node, value: Value, stage: Action, channels: Channels | None
    ) -> Computation:
        """Let something be done to a value: to the results of its computation, or to what lies.

        Args:
            node: Node for which it is.
            value: The value.
            stage: What is done to it.
            channels: Where the channels are that this needs; None where it needs none.
        """
        if isinstance(value, Computation):
            extended = add_stage(value, stage, channels)
            if extended is not None:
                return extended
        fresh = self.begin_map(node, self.store(value), channels is None and stage.keeps_zero)
        extended = add_stage(fresh, stage, channels)
        assert extended is not None
        return extended

    def begin_map(self, node: Node, view: View, anywhere: bool) -> Computation:
        """Begin a computation value by value: of a view, or of the buffer it is an arrangement of.

        Args:
            node: Node for which it is.
            view: The values.
            anywhere: Whether what is done to a value depends neither on its place, nor would make
                anything else of a zero that is put in.
        """
        buffer = view.buffer
        smaller = buffer is not None and buffer.count <= view.places.numel()
        if buffer is not None and anywhere and smaller and view.start is None:
            fresh = self.begin(node, Map(), Region(buffer), (buffer.count,), buffer.bounds)
            return replace(fresh, arranged=view.places)
        region = self.lay(node, view)
        return self.begin(node, Map(), region, view.shape, region.buffer.bounds)

    def join(
        self, node: Node, parts: Sequence[Value], places: Sequence[Tensor]
    ) -> tuple[int, Value, Operand]:
        """Let one of two values be read from memory for the results of the other.

        Args:
            node: Node that combines them.
            parts: The values.
            places: Place in either value of what each result is made of.

        Returns:
            Which one the results are of; the value, an element per result; the other one.
        """
        first = find_first(parts, places)
        second = 1 - first
        view, wanted = self.store(parts[second]), places[second]
        spread = find_spread(wanted, view.places.numel())
        if spread is None:
            view, spread = (
                View(view.buffer, view.places.flatten()[wanted]),
                Channels(wanted.numel(), 1),
            )
        operand = Operand(self.lay(node, view), spread)
        return first, self._take(parts[first], places[first]), operand

    def _take(self, value: Value, places: Tensor) -> Value:
        """Return a tensor of the elements of a value at some places, none of them zero."""
        ordered = is_in_order(places, value.places.numel())
        if isinstance(value, Computation) and ordered and value.arranged is None:
            return rearrange(value, places)
        view = self.store(value)
        if ordered and view.shape == places.shape:
            return view
        return View(view.buffer, view.places.flatten()[places])
