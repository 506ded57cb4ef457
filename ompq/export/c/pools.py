"""Pools, sums and averages as steps: windows, or reductions along dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from torch.fx import GraphModule, Node

from ompq.export.c.program import Bounds, Task
from ompq.graph.arguments import read_arguments, read_dims, read_pooling_window
from ompq.graph.operations import operation, tensor_shape

LARGEST, LEAST, SUM = "LARGEST", "LEAST", "SUM"
_REDUCTIONS = frozenset("amax amin max min mean sum".split())
_WINDOWS = frozenset("maxpool2d max_pool2d maxpool1d max_pool1d".split())
_ADAPTIVE = frozenset("adaptivemaxpool2d adaptive_max_pool2d".split())


@dataclass(frozen=True)
class Side:
    """Windows along one dimension.

    Attributes:
        size: Values along the dimension.
        results: Windows along it.
        kernel: Values of a window; 0 where the windows share the values out.
        stride: Values from one window to the next.
        padding: Values missing before the first.
        dilation: Values from one of a window to the next.
    """

    size: int
    results: int
    kernel: int = 0
    stride: int = 1
    padding: int = 0
    dilation: int = 1


@dataclass(frozen=True)
class Pooling(Task):
    """Windows over the last two dimensions.

    Attributes:
        vertical: Windows along the height.
        horizontal: Windows along the width.
        maps: How many maps there are.
        choice: `LARGEST`, `LEAST` or `SUM`.
    """

    vertical: Side
    horizontal: Side
    maps: int
    choice: str


@dataclass(frozen=True)
class Reduction(Task):
    """Values of outer × length × inner, reduced along the second dimension.

    Attributes:
        outer: Product of the dimensions before.
        length: Values of one result.
        inner: Product of the dimensions behind.
        choice: `LARGEST`, `LEAST` or `SUM`.
    """

    outer: int
    length: int
    inner: int
    choice: str


def lower_pooling(node: Node, module: GraphModule, shape: tuple[int, ...]) -> list[Task] | None:
    """Make tasks of a pool, a maximum, a minimum, a sum or an average, which is a sum here.

    Args:
        node: Node of the operation.
        module: Network that it belongs to.
        shape: Shape of what it reads, for one image.

    Returns:
        Tasks, of which each reads the results of the one before; None where there are none for it.
    """
    name = operation(node, module)
    if name in _REDUCTIONS:
        dims = read_dims(node, module)
        choice = SUM if name in ("mean", "sum") else LARGEST if "max" in name else LEAST
        return None if not dims else _reduce(shape, dims, choice)
    after = tensor_shape(node)
    if after is None:
        return None
    sides = _read_sides(node, module, shape, after)
    if sides is None:
        return None
    choice = LARGEST if name in _WINDOWS | _ADAPTIVE else SUM
    maps = prod(shape) // (sides[0].size * sides[1].size)
    return [Pooling(*sides, maps, choice)]


def bound_results(task: Task, bounds: Bounds) -> Bounds:
    """Return what the results of a pooling or reduction lie between.

    Args:
        task: The pooling or reduction.
        bounds: What the values lie between, 0 included.
    """
    count = 1
    if isinstance(task, Reduction) and task.choice == SUM:
        count = task.length
    elif isinstance(task, Pooling) and task.choice == SUM:
        count = task.vertical.kernel * task.horizontal.kernel
    return bounds[0] * count, bounds[1] * count


def _reduce(shape: tuple[int, ...], dims: tuple[int, ...], choice: str) -> list[Task]:
    """Reduce along neighbouring dimensions at once, the last ones first."""
    tasks: list[Task] = []
    sizes = list(shape)
    left = list(dims)
    while left:
        last = first = left.pop()
        while left and left[-1] == first - 1:
            first = left.pop()
        outer, inner = prod(sizes[:first]), prod(sizes[last + 1 :])
        tasks.append(Reduction(outer, prod(sizes[first : last + 1]), inner, choice))
        sizes[first : last + 1] = [1] * (last + 1 - first)
    return tasks


def _read_sides(
    node: Node, module: GraphModule, before: tuple[int, ...], after: tuple[int, ...]
) -> tuple[Side, Side] | None:
    name = operation(node, module)
    flat = name.endswith("1d")
    sizes = (1, before[-1]) if flat else before[-2:]
    results = (1, after[-1]) if flat else after[-2:]
    if name in _ADAPTIVE:
        rows, columns = (Side(*pair) for pair in zip(sizes, results, strict=True))
        return rows, columns
    if name in _WINDOWS:
        numbers = _read_window(read_arguments(node, module), flat)
    else:
        window = read_pooling_window(node, module)
        if window is None:
            return None
        numbers = [window.kernel, window.stride, window.padding, (1, 1)]
    rows, columns = (
        Side(sizes[k], results[k], *(int(number[k]) for number in numbers)) for k in range(2)
    )
    return rows, columns


def _read_window(arguments: dict[str, Any], flat: bool) -> list[tuple[int, int]]:
    """Read kernel, stride, padding and dilation as numbers for height and width."""
    kernel = arguments.get("kernel_size")
    given = [
        kernel,
        arguments.get("stride") or kernel,
        arguments.get("padding", 0),
        arguments.get("dilation", 1),
    ]
    pairs = []
    for value, alone in zip(given, (1, 1, 0, 1), strict=True):
        numbers: Any = value if isinstance(value, tuple | list) else (value,)
        pairs.append((alone if flat else int(numbers[0]), int(numbers[-1])))
    return pairs
