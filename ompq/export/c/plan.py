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
from ompq.export.arrangements import trace_arrangements, trace_constant, trace_pixels
from ompq.export.c.layers import lower_layer
from ompq.export.c.lowering import OperationPlanner
from ompq.export.c.memory import order_steps
from ompq.export.c.pools import Pooling, Reduction, bound_results, lower_pooling
from ompq.export.c.program import (
    Buffer,
    Computation,
    Input,
    Map,
    Program,
    Region,
    Stage,
    Task,
    View,
)
from ompq.export.c.recording import Recorder
from ompq.export.c.stages import make_clip, read_factor
from ompq.export.c.views import Value, compose, rearrange
from ompq.graph.operations import tensor_shape
from ompq.integer.execution import export_integers
from ompq.integer.forms import Form, find_form
from ompq.integer.layers import QuantizedLayer
from ompq.integer.network import IntegerNetwork, summarise_operations
from ompq.integer.operations import IntegerOperation, QuantizedConstant
from ompq.integer.requantization import OutputRounding, QuantizedAdd, QuantizedCat, Requantizer


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
        self.recorder = Recorder(self.module)
        self.operations = OperationPlanner(self.recorder, numbers)
        self.needed = self._find_needed()

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
            values = [self.recorder.store(value) for value in values]
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
            if isinstance(module, IntegerOperation):
                return [self.operations.plan(node, module, self._read_parts(node))]
            if isinstance(module, OutputRounding):
                return self._read(node)
            if isinstance(module, QuantizedConstant):
                values = trace_constant(self.network, node)
                name = f"constant_{self.recorder.number(node)}"
                return [View.of(Buffer.hold(values, name), tuple(values.shape))]
        return self._operate(node)

    def _operate(self, node: Node) -> list[Value]:
        form = find_form(node, self.module)
        if form in (Form.KEEP, Form.SCALE):
            return self._read(node)
        if form is Form.CLIP:
            value = self._read_one(node)
            low, high = self.numbers[f"{node.name}.clip"]
            clip, channels = make_clip(low, high, value.shape)
            return [self.recorder.extend(node, value, clip, channels)]
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
            raise self.recorder.refuse(node)
        return values[0]

    def _compute_layer(self, node: Node, layer: QuantizedLayer) -> Computation:
        path = str(node.target)
        view = self.recorder.store(self._read_one(node))
        bias = self.numbers.get(f"{path}.bias")
        lowered = lower_layer(layer, self.numbers[f"{path}.weight"], bias, view)
        region = self.recorder.lay(node, lowered.view)
        return self.recorder.begin(node, lowered.task, region, lowered.shape, lowered.bounds)

    def _requantize(self, node: Node) -> Value:
        path = str(node.target)
        low, high = self.numbers[f"{path}.bounds"].tolist()
        if f"{path}.scale" in self.numbers:
            return self._take_images(node)
        value = self._read_one(node)
        if f"{path}.clip" in self.numbers:
            least, largest = self.numbers[f"{path}.clip"]
            clip, channels = make_clip(least, largest, value.shape)
            value = self.recorder.extend(node, value, clip, channels)
        factor, channels = read_factor(self.numbers, path, value.shape)
        stage = Stage(factor, torch.tensor(low), torch.tensor(high))
        return self.recorder.extend(node, value, stage, channels)

    def _take_images(self, node: Node) -> View:
        """Take integers of the caller's: of the image, or of what the network makes of it."""
        path, source = str(node.target), node.all_input_nodes[0]
        shape = tensor_shape(node)
        known = source.op == "placeholder" or source.name in self.network.image_maps
        if not known or shape is None:
            raise self.recorder.refuse(node)
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
        places = [View.of(None, part.shape).places.broadcast_to(shape) for part in parts]
        first, base, operand = self.recorder.join(node, parts, places)
        own, other = (read_factor(self.numbers, f"{path}.{k}", shape) for k in (first, 1 - first))
        low, high = self.numbers[f"{path}.bounds"]
        stage = Stage(own[0], low.long(), high.long(), replace(operand, factor=other[0]))
        return self.recorder.extend(node, base, stage, own[1] or other[1])

    def _concatenate(self, node: Node, module: QuantizedCat) -> View:
        """Rescale parts into one buffer, one after another; a view puts them into their order."""
        path = str(node.target)
        parts = self._read_parts(node)
        low, high = self.numbers[f"{path}.bounds"].tolist()
        scaled = []
        for number, part in enumerate(parts):
            factor, channels = read_factor(self.numbers, f"{path}.{number}", part.shape)
            stage = Stage(factor, torch.tensor(low), torch.tensor(high))
            scaled.append(self.recorder.extend(node, part, stage, channels))
        buffer = Buffer(sum(part.count for part in scaled), (low, high))
        views, start = [], 0
        for part in scaled:
            self.recorder.store(part, Region(buffer, start))
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
                raise self.recorder.refuse(node)
            if nodes.count(part) > 1:
                self.values[part] = values = [self.recorder.store(values[0])]
            found.append(values[0])
        return found

    def _arrange(self, node: Node) -> list[Value]:
        source = self._find_source(node)
        values = self.values[source]
        results = self.arrangements[node.name]
        if len(values) == len(results) == 1 and isinstance(values[0], Computation):
            flat = torch.cat([values[0].places.flatten(), torch.tensor([-1])])
            return [rearrange(values[0], flat[results[0]])]
        views = [self.recorder.store(value) for value in values]
        self.values[source] = list(views)
        composed = [compose(views, places) for places in results]
        if None in composed:
            raise self.recorder.refuse(node)
        return list(filter(None, composed))

    def _pool(self, node: Node) -> list[Value]:
        value = self._read_one(node)
        tasks = lower_pooling(node, self.module, value.shape)
        if tasks is None:
            raise self.recorder.refuse(node)
        shape = tensor_shape(node)
        region = self.recorder.lay(node, value)
        results: Computation | None = None
        for task in tasks:
            if results is not None:
                region = self.recorder.lay(node, results)
            bounds = bound_results(task, region.buffer.bounds)
            results = self.recorder.begin(node, task, region, (_count(task),), bounds)
        assert results is not None
        if shape is not None:
            return [replace(results, results=shape)]
        # The largest values, and where they are, which nobody reads.
        return [self.recorder.store(results), View.of(None, (results.count,))]

    def _finish(self) -> Program:
        output = next(node for node in self.module.graph.nodes if node.op == "output")
        value = self._read_one(output)
        shape = value.shape
        sums = Buffer(prod(shape), (0, 0), "sums")
        if isinstance(value, View):
            region = self.recorder.lay(output, value)
            value = self.recorder.begin(output, Map(), region, shape, region.buffer.bounds)
        self.recorder.store(value, Region(sums))
        scale = self.numbers["output.scale"].double().broadcast_to(shape).flatten()
        inputs = self.inputs
        if len(inputs) > 1:
            for number, given in enumerate(inputs):
                given.buffer.pointer = f"image_{number}"
        return Program(inputs, order_steps(self.recorder.steps), sums, shape, scale)


def _count(task: Task) -> int:
    """Return the number of results of a pooling or reduction."""
    if isinstance(task, Reduction):
        return task.outer * task.inner
    assert isinstance(task, Pooling)
    return task.maps * task.vertical.results * task.horizontal.results
