"""Figures of a report, as SVG: their colours come from the page's style, their text is text."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ompq.report.markup import element, embed, text

# Pixels of what stands left, right, above and below of a plot.
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 56, 14, 96
_HEIGHT = 230
_WIDTH = 1040
_HIGHEST_BITS = 8
_NAMED = 60


@dataclass(frozen=True)
class Axis:
    """A scale from values to pixels.

    Attributes:
        low: Lowest value.
        high: Highest value.
        start: Pixel of the lowest value.
        end: Pixel of the highest value.
        logarithmic: Whether equal distances are equal ratios.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    @classmethod
    def around(
        cls, values: Sequence[float], start: float, end: float, logarithmic: bool = False
    ) -> Axis:
        """Make the scale that all values fit in, with some room on both sides."""
        low, high = min(values), max(values)
        if logarithmic:
            return cls(low / 1.15, high * 1.15, start, end, True)
        room = 0.06 * (high - low) or max(abs(high), 1.0) * 0.06
        return cls(low - room, high + room, start, end)

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return some round values between both ends.

        >>> Axis(0.0, 1.0, 0, 100).ticks()
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        >>> Axis(5.0, 2000.0, 0, 100, logarithmic=True).ticks()
        [10.0, 100.0, 1000.0]
        """
        if self.logarithmic:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            if last > first:
                step = 1 + (last - first) // 6
                return [10.0**power for power in range(first, last + 1, step)]
        rough = (self.high - self.low) / 5
        unit = 10 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first + 1
        return [round((first + place) * step, 12) for place in range(count)]


@dataclass(frozen=True)
class Bar:
    """A bar of a group: its width in bits, over its number of parameters."""

    name: str
    bits: int
    params: int | None
    listed: bool
    tip: str


@dataclass(frozen=True)
class Curve:
    """A line of points: x, y and what a point says where one points at it."""

    title: str
    points: Sequence[tuple[float, float, str]]


def draw_bars(bars: Sequence[Bar]) -> str:
    """Draw the bits of every group over its parameters.

    Args:
        bars: Groups in execution order.
    """
    width = max(_WIDTH, _LEFT + _RIGHT + (18 if len(bars) <= _NAMED else 8) * len(bars))
    width = min(width, max(520, _LEFT + _RIGHT + 60 * len(bars)))
    pitch = (width - _LEFT - _RIGHT) / len(bars)
    height = Axis(0, _HIGHEST_BITS + 0.4, _TOP + _HEIGHT, _TOP)
    sizes = [bar.params for bar in bars if bar.params]
    parts = [*_draw_grid(height, [2, 4, 6, 8], width), _draw_title(14, "weight bits")]
    params = Axis.around(sizes, _TOP + _HEIGHT - 8, _TOP + 8, True) if sizes else None
    places = [_LEFT + pitch * (index + 0.5) for index in range(len(bars))]
    for x, bar in zip(places, bars, strict=True):
        parts.append(_draw_bar(x, 0.8 * pitch, height, bar))
        if len(bars) <= _NAMED:
            parts.append(_draw_name(x, bar.name))
    tall = _TOP + _HEIGHT + (_BOTTOM if len(bars) <= _NAMED else 18)
    if params is not None:
        dots = [(x, params(bar.params)) for x, bar in zip(places, bars, strict=True) if bar.params]
        parts += _draw_line(dots, "second")
        parts += [
            _draw_label(width - _RIGHT + 8, params(tick) + 4, _shorten(tick), "start")
            for tick in params.ticks()
        ]
        parts.append(_draw_title(width - 8, "parameters", "end"))
    return _frame(parts, width, tall)


def draw_curves(
    curves: Sequence[Curve],
    x_title: str,
    y_title: str,
    logarithmic: bool = False,
    level: float | None = None,
) -> str:
    """Draw lines over one axis.

    Args:
        curves: At most three lines of points.
        x_title: What x is.
        y_title: What y is.
        logarithmic: Whether y is drawn so, where all values are positive.
        level: A value of y to compare with, drawn dashed; None for none.
    """
    width = 510
    xs = [x for curve in curves for x, _, _ in curve.points]
    ys = [y for curve in curves for _, y, _ in curve.points] + ([] if level is None else [level])
    across = Axis.around(xs, _LEFT, width - 20)
    up = Axis.around(ys, _TOP + _HEIGHT, _TOP + 14, logarithmic and min(ys) > 0)
    parts = [*_draw_grid(up, up.ticks(), width), _draw_title(14, y_title)]
    counted = all(isinstance(x, int) for x in xs)
    for tick in across.ticks():
        if counted and tick % 1:
            continue  # between two layers or steps there is nothing
        parts.append(_draw_label(across(tick), _TOP + _HEIGHT + 18, f"{tick:g}", "middle"))
    parts.append(_draw_label(width - 20, _TOP + _HEIGHT + 36, x_title, "end"))
    if level is not None:
        y = up(level)
        parts.append(element("line", x1=_LEFT, x2=width - 20, y1=y, y2=y, class_="level"))
    for curve, style in zip(curves, ("first", "second", "third"), strict=False):
        places = [(across(x), up(y)) for x, y, _ in curve.points]
        parts += _draw_line(places, style, [tip for _, _, tip in curve.points])
    legend = [
        element("span", text(curve.title), class_=f"key {style}")
        for curve, style in zip(curves, ("first", "second", "third"), strict=False)
    ]
    drawn = _frame(parts, width, _TOP + _HEIGHT + 48)
    return element("div", drawn, element("p", *legend, class_="legend"))


def draw_matrix(matrix: np.ndarray, names: Sequence[str]) -> str:
    """Draw a matrix of values up to 1 as a picture that tells the value below the pointer.

    Args:
        matrix: n × n.
        names: n names.
    """
    low = min(float(matrix.min()), 0.9)
    share = np.clip((matrix - low) / (1 - low), 0, 1)
    # From dark violet over red to pale yellow: even for eyes that tell red from green badly.
    stops = np.array([[28, 16, 68], [140, 41, 129], [241, 96, 93], [252, 253, 191]], float)
    steps = np.linspace(0, len(stops) - 1, 256)
    palette = [np.interp(steps, range(len(stops)), channel) for channel in stops.T]
    picture = Image.fromarray(np.round(255 * share).astype(np.uint8))
    picture.putpalette(np.stack(palette, 1).astype(np.uint8).tobytes())
    held = io.BytesIO()
    picture.save(held, "PNG")
    source = "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
    return element(
        "figure",
        f'<img class="matrix" alt="orthogonality matrix" src="{source}">',
        element("figcaption", text(f"from {low:.2f} (dark) to 1 (light)")),
        # In thousandths: a page of hundreds of groups stays small.
        embed({"names": list(names), "values": np.round(1000 * matrix).astype(int).tolist()}),
        class_="matrix",
    )


def draw_sizes(rows: Sequence[tuple[str, float, bool]]) -> str:
    """Draw sizes as bars beside their names.

    Args:
        rows: Name, size in MB, and whether it is the network that all is about.
    """
    largest = max(size for _, size, _ in rows)
    lines = []
    for name, size, own in rows:
        bar = element(
            "i", style=f"width:{100 * size / largest:.2f}%", class_="own" if own else None
        )
        shown = element("b", text(f"{size:.4f} MB"), data_value=repr(size))
        lines.append(element("li", element("span", text(name)), bar, shown))
    return element("ul", *lines, class_="sizes")


def _draw_grid(up: Axis, ticks: Sequence[float], width: float) -> Iterator[str]:
    for tick in ticks:
        y = up(tick)
        yield element("line", x1=_LEFT, x2=width - 20, y1=y, y2=y, class_="grid")
        yield _draw_label(_LEFT - 8, y + 4, _shorten(tick), "end")


def _draw_bar(x: float, width: float, height: Axis, bar: Bar) -> str:
    top = height(bar.bits)
    return element(
        "rect",
        x=x - width / 2,
        y=top,
        width=width,
        height=height(0) - top,
        class_="bar" if bar.listed else "bar pinned",
        data_tip=bar.tip,
        data_bits=bar.bits,
        tabindex=0,
    )


def _draw_line(
    places: Sequence[tuple[float, float]], style: str, tips: Sequence[str] | None = None
) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [element("polyline", points=path, class_=f"line {style}")]
    says: Callable[[int], str | None] = (
        (lambda place: tips[place]) if tips else (lambda place: None)
    )
    for place, (x, y) in enumerate(places):
        tip = says(place)
        focus = None if tip is None else 0
        parts.append(
            element("circle", cx=x, cy=y, r=3.5, class_=style, data_tip=tip, tabindex=focus)
        )
    return parts


def _draw_name(x: float, name: str) -> str:
    y = _TOP + _HEIGHT + 12
    short = name if len(name) <= 16 else "…" + name[-15:]
    turned = f"rotate(-60 {x:.1f} {y})"
    return element(
        "text", text(short), x=x, y=y, transform=turned, class_="label", text_anchor="end"
    )


def _draw_label(x: float, y: float, label: str, anchor: str) -> str:
    return element("text", text(label), x=x, y=y, text_anchor=anchor, class_="label")


def _draw_title(x: float, title: str, anchor: str = "start") -> str:
    return element("text", text(title), x=x, y=11, text_anchor=anchor, class_="label")


def _frame(parts: Sequence[str], width: float, height: float) -> str:
    drawn = element(
        "svg", *parts, viewBox=f"0 0 {width:g} {height:g}", width=width, height=height, role="img"
    )
    return element("div", drawn, class_="scroll")


def _shorten(value: float) -> str:
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g} {letter}"
    return f"{value:g}"
