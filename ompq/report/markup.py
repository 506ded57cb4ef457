"""HTML and SVG as text: elements, numbers that carry their exact value, tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

Value = str | int | float | None


def element(name: str, *children: str, **attributes: Value) -> str:
    """Write an element.

    Args:
        name: Its tag.
        children: What it holds, as markup.
        attributes: Its attributes; a name's final `_` is dropped, other `_` become `-`, an
            attribute of None is left out.

    >>> element("p", text("a < b"), class_="quiet", data_tip='"')
    '<p class="quiet" data-tip="&quot;">a &lt; b</p>'
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_format_attribute(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{given}>{''.join(children)}</{name}>"


def text(value: object) -> str:
    """Write a value as text, with what means something in HTML escaped."""
    return escape(str(value))


def number(value: float | None, digits: int = 2, unit: str = "", key: str | None = None) -> str:
    """Write a number that carries its exact value, rounded to decimals; a dash for None.

    Args:
        value: The number.
        digits: Decimals that are shown.
        unit: What stands behind it.
        key: Name of the value in the file that it comes from.

    >>> number(0.5, 2, " MB", "size")
    '<span data-key="size" data-value="0.5">0.50 MB</span>'
    """
    if value is None or not math.isfinite(value):
        return "–"
    shown = text(f"{value:.{digits}f}{unit}")
    return element("span", shown, data_key=key, data_value=repr(value))


def significant(value: float | None) -> str:
    """Write a number of any magnitude in three digits; a dash for None."""
    if value is None or not math.isfinite(value):
        return "–"
    return element("span", text(f"{value:.3g}"), data_value=repr(value))


def embed(value: Any) -> str:
    """Write a JSON-ready value for the page's script to read.

    >>> print(embed(["</script>"]))
    <script type="application/json">["\\u003c/script>"]</script>
    """
    # Nothing in it may look like markup: a script ends at the first thing that looks like its end.
    content = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json">{content}</script>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Write a table that is sorted by a click on a head.

    Args:
        heads: Titles of the columns, as text.
        rows: Cells, as markup.
        caption: What the table shows, as text.
    """
    head = element(
        "tr", *(element("th", element("button", text(title), type="button")) for title in heads)
    )
    body = "".join(element("tr", *(element("td", cell) for cell in row)) for row in rows)
    named = element("caption", text(caption)) if caption else ""
    whole = element("table", named, element("thead", head), element("tbody", body))
    return element("div", whole, class_="scroll", tabindex=0)


def _format_attribute(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
