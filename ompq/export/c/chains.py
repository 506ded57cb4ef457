"""What is done to results, as C: descriptions of stages, and the tables that these read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ompq.export.c.constants import Constants
from ompq.export.c.operations import Line, Table, Times
from ompq.export.c.program import C_TYPES, Action, Buffer, Channels, Computation, Factor, Stage

_NO_FACTOR = "{NULL, NULL, 0}"


class Chains:
    """Writes what is done to the results of steps.

    Args:
        constants: Tables that steps read.
        describe: Function that writes a description: of its type, its name, and its value in C.
        need: Function that notes a function of the runtime, and the type that it is needed for.
    """

    def __init__(
        self,
        constants: Constants,
        describe: Callable[[str, str, str], None],
        need: Callable[[str, str], None],
    ) -> None:
        self.constants, self._describe, self._need = constants, describe, need

    def write(self, label: str, computation: Computation) -> str:
        """Write what is done to results, as the value of a `chain`.

        Args:
            label: What names end with.
            computation: Computation whose results they are.
        """
        # Without channels, all results are of one.
        channels = computation.channels or Channels(1, computation.count)
        written, operands = [], 0
        for number, stage in enumerate(computation.stages):
            written.append(self._write_action(f"{label}_{number}", stage, operands))
            operands += stage.operand is not None
        name = "NULL"
        if written:
            name = f"stages_{label}"
            body = "".join(f"    {stage},\n" for stage in written)
            self._describe("stage", f"{name}[{len(written)}]", f"{{\n{body}}}")
        return f"{{{name}, {len(written)}, {channels.count}, {channels.inner}}}"

    def _write_action(self, name: str, stage: Action, operand: int) -> str:
        """Write a stage: what runs, its numbers, and those of rescaling."""
        run, numbers = "NULL", "NULL"
        factors, ends = f"{_NO_FACTOR}, {_NO_FACTOR}", "0, 0, NULL"
        if isinstance(stage, Stage):
            factors, ends = self._write_rescaling(name, stage)
        elif isinstance(stage, Table):
            run, numbers = self._write_table(name, stage)
        elif isinstance(stage, Line):
            run, numbers = self._write_line(name, stage)
        else:
            assert isinstance(stage, Times)
            self._need("times", "")
            run = "multiply_values"
        spread = Channels(0, 0) if stage.operand is None else stage.operand.spread
        second = f"{operand}, {spread.inner}, {spread.count}"
        return f"{{{run}, {numbers}, {factors}, {second}, {ends}}}"

    def _write_rescaling(self, name: str, stage: Stage) -> tuple[str, str]:
        """Write both factors of a rescaling, and the bounds of its results."""
        own = self._write_factor(name, stage.factor)
        second = None if stage.operand is None else stage.operand.factor
        other = self._write_factor(f"{name}_other", second)
        low, high = torch.broadcast_tensors(stage.low.flatten(), stage.high.flatten())
        if bool((low == low[0]).all() and (high == high[0]).all()):
            bounds, ends = "NULL", (int(low[0]), int(high[0]))
        else:
            pairs = torch.stack([low, high], dim=1).flatten().tolist()
            bounds, ends = self.constants.add(f"bounds_{name}", "int32_t", pairs), (0, 0)
        least, largest = map(_write_int, ends)
        return f"{own}, {other}", f"{least}, {largest}, {bounds}"

    def _write_factor(self, name: str, factor: Factor | None) -> str:
        if factor is None:
            return _NO_FACTOR
        multiplier = self.constants.add(f"multiplier_{name}", "int32_t", factor.multiplier.tolist())
        shift = self.constants.add(f"shift_{name}", "uint8_t", factor.shift.tolist())
        return f"{{{multiplier}, {shift}, {int(len(factor.multiplier) > 1)}}}"

    def _write_table(self, name: str, table: Table) -> tuple[str, str]:
        """Write a table; of several, what is the same for all channels is written once."""
        entries = table.entries
        # Tables are of the types that values in memory are of.
        held = Buffer(entries.numel(), (int(entries.min()), int(entries.max())))
        kind = C_TYPES[held.type]
        item = kind.removesuffix("_t")

        def add(stem: str, numbers: Tensor) -> str:
            return self.constants.add(
                f"{stem}_{name}", kind, (numbers - held.low).flatten().tolist()
            )

        common = add("entries", entries[0])
        differing = torch.nonzero((entries != entries[:1]).any(dim=0)).flatten()
        if not len(differing):
            self._need("look_up", item)
            value = f"{{{common}, {table.first}, {held.low}}}"
            self._describe(f"table_{item}", f"table_{name}", value)
            return f"look_up_{item}", f"&table_{name}"
        begin, end = int(differing[0]), int(differing[-1]) + 1
        own = add("own_entries", entries[:, begin:end])
        self._need("look_up_own", item)
        value = f"{{{common}, {own}, {table.first}, {begin}, {end - begin}, {held.low}}}"
        self._describe(f"tables_{item}", f"tables_{name}", value)
        return f"look_up_own_{item}", f"&tables_{name}"

    def _write_line(self, name: str, line: Line) -> tuple[str, str]:
        parts = []
        for kind, numbers in (("factors", line.multiplier), ("offsets", line.offset)):
            stored = self.constants.add(f"{kind}_{name}", "int32_t", numbers.tolist())
            parts.append(f"{stored}, {int(len(numbers) > 1)}")
        self._need("line", "")
        self._describe("line", f"line_{name}", f"{{{', '.join(parts)}}}")
        return "multiply_and_add", f"&line_{name}"


def _write_int(number: int) -> str:
    """Write an int32; the least one is no literal of C.

    >>> _write_int(-5), _write_int(-(2**31))
    ('-5', 'INT32_MIN')
    """
    return "INT32_MIN" if number == -(2**31) else str(number)
