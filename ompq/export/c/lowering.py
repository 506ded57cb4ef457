"""Operations between layers that have an integer form of their own, as steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.fx import Node

from ompq.export.c.operations import Times, find_factors, read_line, read_table
from ompq.export.c.program import Computation
from ompq.export.c.recording import Recorder
from ompq.export.c.views import Value, get_bounds
from ompq.integer.operations import IntegerOperation
from ompq.integer.pointwise import IntegerAffine, LookupTable
from ompq.integer.products import IntegerProduct


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
            line, channels = read_line(self.numbers, str(node.target), values[0].shape)
            return self.recorder.extend(node, values[0], line, channels)
        raise self.recorder.refuse(node)

    def _multiply(
        self, node: Node, product: IntegerProduct, values: Sequence[Value]
    ) -> Computation:
        """Multiply the results of a value by another one."""
        places = find_factors(product.function, [value.shape for value in values])
        if places is None:
            raise self.recorder.refuse(node)
        _, base, operand = self.recorder.join(node, values, places)
        return self.recorder.extend(node, base, Times(operand), None)

    def _look_up(self, node: Node, operation: LookupTable, value: Value) -> Computation:
        """Look results up, none of which may lie beyond the table's ends."""
        own = operation.nature.shape
        table, channels = read_table(self.numbers, str(node.target), own, value.shape)
        if not all(bound in table.levels for bound in get_bounds(value)):
            raise self.recorder.refuse(node)
        return self.recorder.extend(node, value, table, channels)
