"""Tables of numbers in C, each written once, and their bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_DTYPES = {
    "int8_t": np.int8,
    "uint8_t": np.uint8,
    "int16_t": np.int16,
    "uint16_t": np.uint16,
    "int32_t": np.int32,
    "uint32_t": np.uint32,
}
_LINE = 96


class Constants:
    """The tables of a program; equal ones are one.

    Attributes:
        count_bytes: Bytes of all tables.
    """

    def __init__(self) -> None:
        self.count_bytes = 0
        self._names: dict[tuple[str, bytes], str] = {}
        self._texts: list[str] = []

    def add(self, name: str, kind: str, values: Sequence[int]) -> str:
        """Add a table.

        Args:
            name: Name of it, if no equal one is there.
            kind: Type of its numbers in C.
            values: The numbers.

        Returns:
            Name of the table that holds these numbers.
        """
        content = np.asarray(values, dtype=_DTYPES[kind])
        key = kind, content.tobytes()
        if key not in self._names:
            self._names[key] = name
            self.count_bytes += content.nbytes
            numbers = write_numbers(content.tolist())
            self._texts.append(f"static const {kind} {name}[{content.size}] = {{\n{numbers}\n}};\n")
        return self._names[key]

    def write(self) -> str:
        """Write all tables."""
        return "".join(self._texts)


def write_numbers(values: Sequence[int | str], indent: int = 4) -> str:
    """Write numbers between commas, in lines of a fair length.

    >>> write_numbers([1, 2, 3], indent=2)
    '  1,2,3'
    """
    texts = list(map(str, values))
    per_line = max(1, (_LINE - indent) // (max(map(len, texts)) + 1))
    lines = [",".join(texts[start : start + per_line]) for start in range(0, len(texts), per_line)]
    return ",\n".join(" " * indent + line for line in lines)
