"""Where operations that only arrange values take each of them from, found by running them.

Views, slices, pads, shuffles and the like have more spellings than anybody could list. Run on
numbered elements, each of them tells by itself which one went where.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from ompq.evaluation import find_device
from ompq.graph.operations import carries_values, find_values, tensor_shape
from ompq.integer.execution import IntegerExecution
from ompq.integer.forms import Form, find_form, find_tensors, map_tensors
from ompq.integer.network import IntegerNetwork


def trace_arrangements(network: IntegerNetwork) -> dict[str, tuple[Tensor, ...]]:
    """Trace where every operation that arranges values takes the elements of its result from.

    Args:
        network: Network of integers, in evaluation mode; its scales are not looked at.

    Returns:
        Node name → one int64 tensor per tensor of the node's value for one image, of that tensor's
        shape: the places of its elements in the source, -1 where a zero is put in. Places count the
        source's value for one image in the order of its dimensions (row-major); of a source of
        several tensors (a chunk's), one tensor after the other. Reductions to a maximum or minimum,
        whose places depend on the values, have no entry.
    """
    execution = _NumberedExecution(network)
    execution.logits(torch.zeros(1, *network.input_shape))
    return execution.places


def trace_pixels(network: IntegerNetwork, node: Node) -> Tensor | None:
    """Trace which pixel each element of a value is that the network makes of the images.

    Args:
        network: Network of integers, in evaluation mode.
        node: Node of its module, one of `image_maps` or the images themselves.

    Returns:
        Places of the pixels in one image (row-major), -1 for zeros, int64, of the shape of the
        node's value for one image; None where pixels are changed.
    """
    shape = (1, *network.input_shape)
    found = []
    for numbers in _number(prod(shape)):
        images = numbers.view(shape).to(find_device(network.module), torch.float32)
        # Numbers up to 2^24 are exact in float32.
        value = run_up_to(network.module, node, images).cpu()
        whole = value.long()
        if not torch.equal(whole.to(value.dtype), value) or len(numbers) >= 2**24:
            return None
        found.append(_look_up(numbers, [whole]))
    first = found[0]
    same = first is not None and all(_are_equal(first, other) for other in found[1:])
    return first[0] if first is not None and same else None


def trace_constant(network: IntegerNetwork, node: Node, images: int = 1) -> Tensor:
    """Compute the integers of a value that no image changes.

    Args:
        network: Network of integers, in evaluation mode.
        node: Node of its module that calls a `QuantizedConstant`.
        images: How many images there are, by which a value may be repeated.
    """
    scale_source = network.scale_sources[node.name]
    assert scale_source is not None
    zeros = torch.zeros(images, *network.input_shape, device=find_device(network.module))
    scale = scale_source.get_scale().cpu()
    return torch.round(run_up_to(network.module, node, zeros) / scale).long()


@torch.inference_mode()
def run_up_to(module: GraphModule, last: Node, images: Tensor) -> Any:
    """Compute the value of a node, and nothing that it does not need.

    Args:
        module: Traced network.
        last: Node of it, whose value may be anything.
        images: Images, n × channels × height × width.
    """
    needed, waiting = set(), [last]
    while waiting:
        node = waiting.pop()
        needed.add(node)
        waiting += [source for source in node.all_input_nodes if source not in needed]
    interpreter = Interpreter(module)
    for node in module.graph.nodes:
        if node in needed:
            given = images if node.op == "placeholder" else interpreter.run_node(node)
            interpreter.env[node] = given
    return interpreter.env[last]


class _NumberedExecution(IntegerExecution):
    """Runs what arranges values on numbered elements; all else is zeros of the recorded shape.

    Args:
        network: Network of integers.

    Attributes:
        places: Node name → places, as `trace_arrangements` returns them.
    """

    def __init__(self, network: IntegerNetwork) -> None:
        super().__init__(network, {})
        self.places: dict[str, tuple[Tensor, ...]] = {}

    def run_node(self, n: Node) -> Any:
        """Note the places of an operation that arranges, and hand zeros on."""
        integers = self.network.scale_sources.get(n.name) is not None
        shape = tensor_shape(n)
        computes = n.op.startswith("call_")
        if computes and carries_values(n) and find_form(n, self.structure) is Form.ARRANGE:
            self._note_places(n)
        if computes and (carries_values(n) or integers) and shape is not None:
            kind = torch.int64 if integers else n.meta.get("dtype")
            return torch.zeros(shape, dtype=kind, device="cpu" if integers else self.device)
        return super().run_node(n)

    def _dequantize(self, path: str, x: Tensor) -> Tensor:
        return torch.zeros(x.shape, device=self.device)

    def _note_places(self, n: Node) -> None:
        sources = find_values(n)
        if len(sources) != 1:
            return
        (source,) = sources
        kept = self.env[source]
        integers = self.network.scale_sources.get(n.name) is not None

        def run(filled: Any) -> Any:
            if integers:
                self.env[source] = filled
                return self._run_operation(n)
            # Float64 holds these numbers exactly.
            self.env[source] = map_tensors(filled, lambda x: x.double().to(self.device))
            return super(_NumberedExecution, self).run_node(n)

        try:
            places = find_places(kept, run)
        finally:
            self.env[source] = kept
        if places is not None:
            self.places[n.name] = places


def find_places(value: Any, run: Callable[[Any], Any]) -> tuple[Tensor, ...] | None:
    """Find where an operation takes elements from, by what it makes of several numberings of them.

    Args:
        value: What the operation reads: a tensor, or a tuple of several; only shapes count.
        run: Function that runs the operation on such a value, whose elements are int64 numbers.

    Returns:
        One tensor of places per tensor of its result, as `trace_arrangements` gives them; None
        where the operation does not just arrange.

    >>> find_places(torch.zeros(1, 3), lambda x: x.flip(1))
    (tensor([[2, 1, 0]]),)
    """
    count = sum(part.numel() for part in find_tensors(value))
    found = [_follow(run(_fill(value, numbers)), numbers) for numbers in _number(count)]
    first = found[0]
    agree = first is not None and all(_are_equal(first, other) for other in found[1:])
    return first if agree else None


def _follow(result: Any, numbers: Tensor) -> tuple[Tensor, ...] | None:
    """Return where elements, numbered from 1 on, went; None where others than they came out."""
    places = torch.full((len(numbers) + 1,), -1)
    places[numbers] = torch.arange(len(numbers))
    results = [part.round().long().cpu() for part in find_tensors(result)]
    if any(((part < 0) | (part > len(numbers))).any() for part in results):
        return None
    return tuple(places[part] for part in results)


def _number(count: int) -> list[Tensor]:
    """Number elements upwards, downwards and at random.

    What chooses the largest or the least of several takes another one each time.
    """
    upwards = torch.arange(1, count + 1)
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0)) + 1
    return [upwards, upwards.flip(0), shuffled]


def _look_up(numbers: Tensor, results: list[Tensor]) -> tuple[Tensor, ...] | None:
    """Look up which elements results are by their numbers; None where there are others."""
    places = torch.full((len(numbers) + 1,), -1)
    places[numbers] = torch.arange(len(numbers))
    if any(bool(((result < 0) | (result > len(numbers))).any()) for result in results):
        return None
    return tuple(places[result] for result in results)


def _fill(value: Any, numbers: Tensor) -> Any:
    """Return a value of the same tensors, filled with numbers one after the other."""
    sizes = [part.numel() for part in find_tensors(value)]
    starts = iter(accumulate(sizes, initial=0))

    def fill(part: Tensor) -> Tensor:
        start = next(starts)
        return numbers[start : start + part.numel()].view(part.shape)

    return map_tensors(value, fill)


def _are_equal(first: tuple[Tensor, ...], other: tuple[Tensor, ...] | None) -> bool:
    return other is not None and all(map(torch.equal, first, other))
