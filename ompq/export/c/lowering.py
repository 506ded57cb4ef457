"""Operations between layers that have an integer form of their own, as steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.fx import Node

from ompq.export.c.contractions import bound_sums, find_pattern, make_contraction
from ompq.export.c.normalising import move_last, read_norm, read_softmax
from ompq.export.c.operations import Times, find_factors, read_line, read_table
from ompq.export.c.program import Computation, Region, View
from ompq.export.c.recording import Recorder
from ompq.export.c.views import Value, get_bounds, rearrange
from ompq.integer.normalisation import IntegerNorm
from ompq.integer.operations import IntegerOperation
from ompq.integer.pointwise import IntegerAffine, LookupTable
from ompq.integer.products import IntegerProduct
from ompq.integer.softmax import IntegerSoftmax


class OperationPlanner:
    """Plans the steps of operations that have an integer form of their own.

    Args:
        recorder: What notes steps.
        numbers: Integers of the network by name.
    """

    def __init__(self, recorder: Recorder, numbers: Mapping[str, Tensor]) -> None:
        self.recorder, self.numbers = recorder, numbers

    def plan(self, node: Node, operation: IntegerOperation, values: Sequence[Value]) -> Value:
        """Plan an operation.

        Args:
            node: Node that calls it.
            operation: The operation.
            values: What it reads.

        Raises:
            OmpqError: It has no form in C.
        """
        if isinstance(operation, IntegerProduct):
            return self._multiply(node, operation, values)
        if isinstance(operation, LookupTable):
            return self._look_up(node, operation, values[0])
        if isinstance(operation, IntegerAffine):
            path, shape = str(node.target), values[0].shape
            factor, offset = self.numbers[f"{path}.multiplier"], self.numbers[f"{path}.offset"]
            return self.recorder.extend(node, values[0], *read_line(factor, offset, shape))
        if isinstance(operation, IntegerSoftmax):
            return self._take_softmax(node, operation.dim, values[0])
        if isinstance(operation, IntegerNorm):
            return self._normalise(node, operation, values[0])
        raise self.recorder.refuse(node)

    def _multiply(
        self, node: Node, product: IntegerProduct, values: Sequence[Value]
    ) -> Computation:
        """Multiply the results of a value by another one, or sum products of both."""
        shapes = [value.shape for value in values]
        places = find_factors(product.function, shapes)
        if places is not None:
            _, base, operand = self.recorder.join(node, values, places)
            return self.recorder.extend(node, base, Times(operand), None)
        pattern = find_pattern(product.function, shapes)
        if pattern is None:
            raise self.recorder.refuse(node)
        regions = [self.recorder.lay(node, value) for value in values]
        if pattern.loops[-1].first and not pattern.loops[-1].second:
            pattern, regions = pattern.exchange(), regions[::-1]
        source, second = (
            Region(region.buffer, region.start + start)
            for region, start in zip(regions, pattern.starts, strict=True)
        )
        task = make_contraction(pattern, second)
        if task is None:
            raise self.recorder.refuse(node)
        bounds = bound_sums(pattern.summed.size, source.buffer.bounds, second.buffer.bounds)
        return self.recorder.begin(node, task, source, pattern.shape, bounds)

    def _take_softmax(self, node: Node, dim: int, value: Value) -> Computation:
        """Compute probabilities along a dimension."""
        view = self.recorder.store(value)
        order, back = move_last(len(view.shape), (dim,))
        moved = View(view.buffer, view.places.permute(order))
        task = read_softmax(self.numbers, str(node.target), moved.shape)
        region = self.recorder.lay(node, moved)
        made = self.recorder.begin(node, task, region, moved.shape, task.bounds)
        return rearrange(made, made.places.permute(back))

    def _normalise(self, node: Node, operation: IntegerNorm, value: Value) -> Computation:
        """Normalise values over dimensions, and multiply and add to them."""
        norm, view = operation.norm, self.recorder.store(value)
        grouped = norm.group(view.places)
        order, back = move_last(grouped.dim(), norm.dims)
        moved = View(view.buffer, grouped.permute(order))
        sizes = grouped.numel() // operation.count, operation.count
        task = read_norm(self.numbers, str(node.target), sizes, operation.shift, norm.centred)
        region = self.recorder.lay(node, moved)
        made = self.recorder.begin(node, task, region, moved.shape, task.bounds)
        gain, offset = (
            norm.group(self.numbers[f"{node.target}.{name}"].broadcast_to(view.shape)).permute(
                order
            )
            for name in ("gain", "offset")
        )
        made = self.recorder.extend(node, made, *read_line(gain, offset, moved.shape))
        return rearrange(made, made.places.permute(back).reshape(view.shape))

    def _look_up(self, node: Node, operation: LookupTable, value: Value) -> Computation:
        """Look results up, none of which may lie beyond the table's ends."""
        own = operation.nature.shape
        table, channels = read_table(self.numbers, str(node.target), own, value.shape)
        if not all(bound in table.levels for bound in get_bounds(value)):
            raise self.recorder.refuse(node)
        return self.recorder.extend(node, value, table, channels)
