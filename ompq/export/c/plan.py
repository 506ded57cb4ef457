"""A network of integers as steps: what is computed, and what is done to it before it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from ompq.errors import OmpqError
from ompq.export.arrangements import trace_arrangements, trace_pixels
from ompq.export.c.copies import plan_copy
from ompq.export.c.layers import Layer, lower_layer
from ompq.export.c.memory import order_steps
from ompq.export.c.pools import Pooling, Reduction, bound_results, lower_pooling
from ompq.export.c.program import (
    Buffer,
    Channels,
    Computation,
    Input,
    Map,
    Operand,
    Program,
    Region,
    Stage,
    Step,
    Task,
    View,
)
from ompq.export.c.stages import add_stage, make_clip, read_factor
from ompq.graph.operations import operation, tensor_shape
from ompq.integer.execution import export_integers
from ompq.integer.forms import Form, find_form
from ompq.integer.layers import QuantizedLayer
from ompq.integer.network import IntegerNetwork, locate, summarise_operations
from ompq.integer.requantization import OutputRounding, QuantizedAdd, QuantizedCat, Requantizer

# A tensor: where it lies, or how it will be computed.
Value = View | Computation


def plan(network: IntegerNetwork) -> Program:
    """Plan the steps that compute a network.

    Args:
        network: Network of integers, in evaluation mode, on the CPU.

    Raises:
        OmpqError: The network does not run on integers alone, or an operation has no form in C.
    """
    if network.float_operations:
        found = summarise_operations(network.module, network.float_operations)
        raise OmpqError(
            f"C computes with integers alone, but these have no integer form: {found}; export "
            "this network to ONNX"
        )
    return _Planner(network, export_integers(network)).run()


class _Planner:
    """Walks a network in execution order and notes the steps.

    A result that a single other operation reads is not stored at once: what only rescales, clips,
    adds or concatenates it is done to it first.

    Args:
        network: Network of integers.
        numbers: Its integers by name.
    """

    def __init__(self, network: IntegerNetwork, numbers: Mapping[str, Tensor]) -> None:
        self.network, self.numbers = network, numbers
        self.module = network.module
        self.arrangements = trace_arrangements(network)
        self.values: dict[Node, list[Value]] = {}
        self.inputs: list[Input] = []
        self.steps: list[Step] = []
        self.numbering = {node: place for place, node in enumerate(self.module.graph.nodes)}
        self.needed = self._find_needed()
        self.laid: dict[View, Region] = {}

    def run(self) -> Program:
        """Plan all steps."""
        for node in self.needed:
            if node.op != "output":
                self._keep(node, self._compute(node))
        return self._finish()

    def _find_needed(self) -> dict[Node, None]:
        """Find the nodes whose integers lead to the output, in execution order."""
        found: list[Node] = []
        needed: set[Node] = set()
        for node in reversed(self.module.graph.nodes):
            integers = self.network.scale_sources.get(node.name) is not None
            read = any(user in needed for user in node.users)
            if node.op == "output" or (integers and read):
                needed.add(node)
                found.append(node)
        return dict.fromkeys(reversed(found))

    def _keep(self, node: Node, values: list[Value]) -> None:
        """Note the value of a node; store it unless one other node alone reads it."""
        readers = [user for user in node.users if user in self.needed]
        if len(readers) != 1 or len(values) != 1:
            values = [self._store(value) for value in values]
        self.values[node] = values

    def _compute(self, node: Node) -> list[Value]:
        if node.op == "call_module":
            module = self.module.get_submodule(str(node.target))
            if isinstance(module, QuantizedLayer):
                return [self._compute_layer(node, module)]
            if isinstance(module, QuantizedCat):
                return [self._concatenate(node, module)]
            if isinstance(module, QuantizedAdd):
                return [self._add(node)]
            if isinstance(module, Requantizer):
                return [self._requantize(node)]
            if isinstance(module, OutputRounding):
                return self._read(node)
        return self._operate(node)

    def _operate(self, node: Node) -> list[Value]:
        form = find_form(node, self.module)
        if form in (Form.KEEP, Form.SCALE):
            return self._read(node)
        if form is Form.CLIP:
            value = self._read_one(node)
            low, high = self.numbers[f"{node.name}.clip"]
            clip, channels = make_clip(low, high, value.shape)
            return [self._extend(node, value, clip, channels)]
        if node.name in self.arrangements:
            return self._arrange(node)
        return self._pool(node)

    def _read(self, node: Node) -> list[Value]:
        return self.values[self._find_source(node)]

    def _find_source(self, node: Node) -> Node:
        return next(source for source in node.all_input_nodes if source in self.values)

    def _read_one(self, node: Node) -> Value:
        values = self._read(node)
        if len(values) != 1:
            raise self._refuse(node)
        return values[0]

    def _refuse(self, node: Node) -> OmpqError:
        where, what = locate(node), operation(node, self.module)
        return OmpqError(f"{where} ({what}) has no form in C; export this network to ONNX")

    # What becomes of values.

    def _store(self, value: Value, target: Region | None = None) -> View:
        """Let a computation's results be stored; a view is stored already."""
        if isinstance(value, View):
            return value
        target = target or Region(Buffer(value.count, value.bounds))
        self.steps.append(Step(value, target))
        return View(target.buffer, value.places)

    def _lay(self, node: Node, value: Value) -> Region:
        """Let a value lie in memory, its elements neighbours."""
        view = self._store(value)
        buffer = view.buffer
        if buffer is None:
            raise self._refuse(node)
        if view not in self.laid:
            start = view.start
            if start is None:
                task = plan_copy(view)
                copied = self._begin(node, task, Region(buffer), view.shape, buffer.bounds)
                buffer = self._store(copied).buffer or buffer
            self.laid[view] = Region(buffer, start or 0)
        return self.laid[view]

    def _begin(
        self,
        node: Node,
        task: Task,
        source: Region,
        shape: tuple[int, ...],
        bounds: tuple[int, int],
    ) -> Computation:
        return Computation(task, source, shape, bounds, locate(node), self.numbering[node])

    def _extend(
        self, node: Node, value: Value, stage: Stage, channels: Channels | None
    ) -> Computation:
        """Let something be done to a value: to the results of its computation, or to what lies."""
        if isinstance(value, Computation):
            extended = add_stage(value, stage, channels)
            if extended is not None:
                return extended
        fresh = self._begin_map(node, self._store(value), channels is None and stage.keeps_zero)
        extended = add_stage(fresh, stage, channels)
        assert extended is not None
        return extended

    def _begin_map(self, node: Node, view: View, anywhere: bool) -> Computation:
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
            fresh = self._begin(node, Map(), Region(buffer), (buffer.count,), buffer.bounds)
            return replace(fresh, arranged=view.places)
        region = self._lay(node, view)
        return self._begin(node, Map(), region, view.shape, region.buffer.bounds)

    # Operations.

    def _compute_layer(self, node: Node, layer: QuantizedLayer) -> Computation:
        path = str(node.target)
        view = self._store(self._read_one(node))
        bias = self.numbers.get(f"{path}.bias")
        lowered = lower_layer(layer, self.numbers[f"{path}.weight"], bias, view)
        region = self._lay(node, lowered.view)
        return self._begin(node, lowered.task, region, lowered.shape, lowered.bounds)

    def _requantize(self, node: Node) -> Value:
        path = str(node.target)
        low, high = self.numbers[f"{path}.bounds"].tolist()
        if f"{path}.scale" in self.numbers:
            return self._take_images(node)
        value = self._read_one(node)
        if f"{path}.clip" in self.numbers:
            least, largest = self.numbers[f"{path}.clip"]
            clip, channels = make_clip(least, largest, value.shape)
            value = self._extend(node, value, clip, channels)
        factor, channels = read_factor(self.numbers, path, value.shape)
        stage = Stage(factor, torch.tensor(low), torch.tensor(high))
        return self._extend(node, value, stage, channels)

    def _take_images(self, node: Node) -> View:
        """Take integers of the caller's: of the image, or of what the network makes of it."""
        path, source = str(node.target), node.all_input_nodes[0]
        shape = tensor_shape(node)
        known = source.op == "placeholder" or source.name in self.network.image_maps
        if not known or shape is None:
            raise self._refuse(node)
        pixels = trace_pixels(self.network, source)
        shape = shape if pixels is None else (1, *self.network.input_shape)
        low, high = self.numbers[f"{path}.bounds"].tolist()
        buffer = Buffer(prod(shape), (low, high), "image")
        scale = float(self.numbers[f"{path}.scale"])
        self.inputs.append(Input(buffer, shape, scale, source, (low, high), pixels is None))
        return View.of(buffer, shape) if pixels is None else View(buffer, pixels)

    def _add(self, node: Node) -> Computation:
        """Add a value to the results of another one, which is computed at last if it can be."""
        path = str(node.target)
        parts = self._read_parts(node)
        shape = np.broadcast_shapes(*(part.shape for part in parts))
        first = max(range(2), key=lambda k: _rank_first(parts[k], shape))
        factors = [read_factor(self.numbers, f"{path}.{k}", shape) for k in range(2)]
        second = 1 - first
        low, high = self.numbers[f"{path}.bounds"]
        operand = self._lay(node, _broadcast(self._store(parts[second]), shape))
        base = parts[first]
        if base.shape != shape:
            base = _broadcast(self._store(base), shape)
        own, other = factors[first], factors[second]
        stage = Stage(own[0], low.long(), high.long(), Operand(operand, other[0]))
        return self._extend(node, base, stage, own[1] or other[1])

    def _concatenate(self, node: Node, module: QuantizedCat) -> View:
        """Rescale parts into one buffer, one after another; a view puts them into their order."""
        path = str(node.target)
        parts = self._read_parts(node)
        low, high = self.numbers[f"{path}.bounds"].tolist()
        scaled = []
        for number, part in enumerate(parts):
            factor, channels = read_factor(self.numbers, f"{path}.{number}", part.shape)
            stage = Stage(factor, torch.tensor(low), torch.tensor(high))
            scaled.append(self._extend(node, part, stage, channels))
        buffer = Buffer(sum(part.count for part in scaled), (low, high))
        views, start = [], 0
        for part in scaled:
            self._store(part, Region(buffer, start))
            views.append(torch.where(part.places < 0, -1, part.places + start))
            start += part.count
        return View(buffer, module.combine(views))

    def _read_parts(self, node: Node) -> list[Value]:
        """Return the values that an operation combines; one that it reads twice is stored."""
        nodes = [part for part in node.args if isinstance(part, Node)]
        found: list[Value] = []
        for part in nodes:
            values = self.values[part]
            if len(values) != 1:
                raise self._refuse(node)
            if nodes.count(part) > 1:
                self.values[part] = values = [self._store(values[0])]
            found.append(values[0])
        return found

    def _arrange(self, node: Node) -> list[Value]:
        source = self._find_source(node)
        values = self.values[source]
        results = self.arrangements[node.name]
        if len(values) == len(results) == 1 and isinstance(values[0], Computation):
            flat = torch.cat([values[0].places.flatten(), torch.tensor([-1])])
            return [_rearrange(values[0], flat[results[0]])]
        views = [self._store(value) for value in values]
        self.values[source] = list(views)
        return [self._compose(node, views, places) for places in results]

    def _compose(self, node: Node, views: list[View], places: Tensor) -> View:
        """Follow places in a source of one or several views to the buffer behind them."""
        counts = torch.tensor([view.places.numel() for view in views])
        owners = torch.repeat_interleave(torch.arange(len(views)), counts)
        used = sorted({views[k].buffer for k in owners[places[places >= 0]].unique()}, key=id)
        if len(used) != 1:
            raise self._refuse(node)
        zero = torch.tensor([-1])
        flat = torch.cat([*(view.places.flatten() for view in views), zero])
        return View(used[0], flat[places])

    def _pool(self, node: Node) -> list[Value]:
        value = self._read_one(node)
        tasks = lower_pooling(node, self.module, value.shape)
        if tasks is None:
            raise self._refuse(node)
        shape = tensor_shape(node)
        region = self._lay(node, value)
        results: Computation | None = None
        for task in tasks:
            if results is not None:
                region = self._lay(node, results)
            bounds = bound_results(task, region.buffer.bounds)
            results = self._begin(node, task, region, (_count(task),), bounds)
        assert results is not None
        if shape is not None:
            return [replace(results, results=shape)]
        # The largest values, and where they are, which nobody reads.
        return [self._store(results), View.of(None, (results.count,))]

    def _finish(self) -> Program:
        output = next(node for node in self.module.graph.nodes if node.op == "output")
        value = self._read_one(output)
        shape = value.shape
        sums = Buffer(prod(shape), (0, 0), "sums")
        if isinstance(value, View):
            region = self._lay(output, value)
            value = self._begin(output, Map(), region, shape, region.buffer.bounds)
        self._store(value, Region(sums))
        scale = self.numbers["output.scale"].double().broadcast_to(shape).flatten()
        inputs = self.inputs
        if len(inputs) > 1:
            for number, given in enumerate(inputs):
                given.buffer.pointer = f"image_{number}"
        return Program(inputs, order_steps(self.steps), sums, shape, scale)


def _rank_first(value: Value, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rank an operand of a sum as the one whose results the other is added to: a layer's at best.

    Args:
        value: The operand.
        shape: Shape of the sum.
    """
    if isinstance(value, View) or value.arranged is not None or value.shape != shape:
        return 0, 0
    return (2 if isinstance(value.task, Layer) else 1), value.number


def _rearrange(computation: Computation, places: Tensor) -> Computation:
    """Return a computation as a tensor whose elements are its results at some places."""
    if torch.equal(places.flatten(), torch.arange(computation.count)):
        return replace(computation, results=tuple(places.shape), arranged=None)
    return replace(computation, arranged=places)


def _broadcast(view: View, shape: tuple[int, ...]) -> View:
    """Return a view whose elements are repeated to a shape."""
    return view if view.shape == shape else View(view.buffer, view.places.broadcast_to(shape))


def _count(task: Task) -> int:
    """Return the number of results of a pooling or reduction."""
    if isinstance(task, Reduction):
        return task.outer * task.inner
    assert isinstance(task, Pooling)
    return task.maps * task.vertical.results * task.horizontal.results
