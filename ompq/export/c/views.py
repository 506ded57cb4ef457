"""Tensors of a program before they lie in memory: their elements in another order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ompq.export.c.layers import Layer
from ompq.export.c.program import Bounds, Computation, View

# A tensor: where it lies, or how it will be computed.
Value = View | Computation


def get_bounds(value: Value) -> Bounds:
    """Return the least and the largest integer of a tensor that there may be."""
    if isinstance(value, Computation):
        return value.bounds
    return (0, 0) if value.buffer is None else value.buffer.bounds


def rearrange(computation: Computation, places: Tensor) -> Computation:
    """Return a computation as a tensor whose elements are its results at some places."""
    if is_in_order(places, computation.count):
        return replace(computation, results=tuple(places.shape), arranged=None)
    return replace(computation, arranged=places)


def compose(views: Sequence[View], places: Tensor) -> View | None:
    """Follow places in a source of one or several views to the buffer behind them.

    Args:
        views: The views, whose elements are counted one after the other.
        places: Places in them, -1 for zero; of the result's shape.

    Returns:
        The view; None where elements lie in several buffers.
    """
    counts = torch.tensor([view.places.numel() for view in views])
    owners = torch.repeat_interleave(torch.arange(len(views)), counts)
    used = sorted({views[k].buffer for k in owners[places[places >= 0]].unique()}, key=id)
    if len(used) != 1:
        return None
    flat = torch.cat([*(view.places.flatten() for view in views), torch.tensor([-1])])
    return View(used[0], flat[places])


def is_in_order(places: Tensor, count: int) -> bool:
    """Tell whether places are all those of a value, one after another."""
    return torch.equal(places.flatten(), torch.arange(count))


def find_first(values: Sequence[Value], places: Sequence[Tensor]) -> int:
    """Find the value of a sum or product whose results the other one is to be read for.

    Args:
        values: Both values.
        places: Place in either value of what each result is made of.
    """

    def rank(number: int) -> tuple[bool, int, int]:
        value = values[number]
        if not is_in_order(places[number], value.places.numel()):
            return False, 0, 0
        if isinstance(value, View):
            held = value.buffer is not None and value.buffer.values is not None
            return True, -1 if held else 0, 0
        if value.arranged is not None:
            return True, 0, 0
        # What is computed last, and a layer's sums at best.
        return True, 2 if isinstance(value.task, Layer) else 1, value.number

    return max(range(len(values)), key=rank)
