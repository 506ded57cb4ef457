"""Lines of a layer and its bits, with a header or without, that a person or a tool wrote."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from ompq.errors import OmpqError

# Heads of columns: what a layer reads, its weights, and what is of neither.
_OF_READS = re.compile(r"(^|[^a-z])(a|in|act\w*|input\w*)([^a-z]|$)|^(act|input|a_?bit)")
_OF_WEIGHTS = re.compile(r"(^|[^a-z])w([^a-z]|$)|weight|^w_?bit")
_OF_OTHERS = re.compile(r"bias|output|(^|[^a-z])out([^a-z]|$)")
_OF_LAYER = re.compile("layer|name|module|node")
_NO_NAME = re.compile("id|index|idx|type|number")
# Characters of a line that a message shows.
_LONGEST = 80


def read_bit_table(text: str, source: str) -> list[tuple[str, int, int | None]] | None:
    """Read lines of layer and bits, and of what the layer reads where there is a third column.

    Args:
        text: Lines whose columns are parted by commas, semicolons or tabs; those that begin with
            `#` are left out.
        source: Name of the file, for messages.

    Returns:
        Layer, weight bits, and activation bits or None, for every line; None where the text is no
        such table.

    Raises:
        OmpqError: A line is no layer and its bits, or the header does not tell which are the bits.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines or "{" in lines[0]:
        return None
    delimiter = max(";,\t", key=lines[0].count)
    rows = list(csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter))
    rows = [[cell.strip() for cell in row] for row in rows]
    if any(len(row) < 2 for row in rows):
        return None
    columns = [0, 1, 2]
    if not any(map(is_whole_number, rows[0])):
        columns = _read_header(rows.pop(0), source)
    found = []
    for row in rows:
        cells = [row[column] if 0 <= column < len(row) else "" for column in columns]
        name, bits, acts = cells
        if not name or not is_whole_number(bits) or (acts and not is_whole_number(acts)):
            raise OmpqError(
                f"{source}: the line {delimiter.join(row)[:_LONGEST]!r} is not a layer and its "
                f"bits; write it like conv1{delimiter}4"
            )
        found.append((name, int(bits), int(acts) if acts else None))
    return found


def is_whole_number(text: str) -> bool:
    """Tell whether a text is a whole number, of no more digits than any width has by far.

    >>> is_whole_number("8"), is_whole_number("8.0")
    (True, False)
    """
    return re.fullmatch(r"[+-]?[0-9]{1,9}", text) is not None


def _read_header(names: Sequence[str], source: str) -> list[int]:
    """Find the columns of layer, weight bits and activation bits; −1 where there is none.

    Raises:
        OmpqError: It is no header, or several columns may be the bits.
    """
    lower = [name.lower() for name in names]
    widths = [i for i, name in enumerate(lower) if "bit" in name]
    acts = [i for i in widths if _OF_READS.search(lower[i])]
    acts = acts or [i for i, name in enumerate(lower) if name.startswith(("act", "input"))]
    layers = [i for i, name in enumerate(lower) if i not in widths and _OF_LAYER.search(name)]
    # "layer_name" rather than "layer_index", wherever it stands.
    layers.sort(key=lambda i: (bool(_NO_NAME.search(lower[i])), "name" not in lower[i]))
    bits = [i for i in widths if i not in acts and not _OF_OTHERS.search(lower[i])]
    bits = [i for i in bits if _OF_WEIGHTS.search(lower[i])] or bits
    bits = bits or [i for i, name in enumerate(lower) if name in ("width", "precision", "weights")]
    if len(bits) > 1 or len(acts) > 1:
        several = ", ".join(names[i] for i in (bits if len(bits) > 1 else acts))
        raise OmpqError(f"{source}: several columns may be the bits ({several}); keep one")
    if not bits and (layers or widths or any(re.search("[0-9]", name) for name in names[1:])):
        raise OmpqError(
            f"{source}: the first line, {', '.join(names)[:_LONGEST]}, names no column of bits, "
            "and is not a layer and its bits; write it like layer,bits or conv1,4"
        )
    layer = layers[0] if layers else 0
    return [layer, bits[0] if bits else 1 - min(layer, 1), acts[0] if acts else -1]
