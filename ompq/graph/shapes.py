"""What the nodes of a traced network hold: shapes, the place of the images, constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from ompq.graph.layout import find_layout


def record_shapes(traced: GraphModule, input_shape: tuple[int, int, int]) -> None:
    """Run a traced network on one image, then on two, and note in each node what it holds.

    `shape` is that of a tensor for one image, `dtype` its type, `moderate` whether its values are
    finite, and their squares; `holds_tensors` tells of several; `from_images` whether values depend
    on the images' values; `layout` where the images are in it, None where that cannot be told;
    `sums_to_one` whether values are shares of one, along the last dimension or the one before it.

    Args:
        traced: Traced network; its nodes' `meta` is changed.
        input_shape: Channels, height and width of one image.
    """
    parameter = next(traced.parameters(), None)
    device = parameter.device if parameter is not None else None
    # Drawn on the CPU: every device decides by one set of values.
    images = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0)).to(device)
    record_values(traced, [images[:1].clone()], [images])


def record_values(traced: GraphModule, of_one: Sequence[Tensor], of_two: Sequence[Tensor]) -> None:
    """Note in each node of a traced network what it holds, as `record_shapes` does.

    Args:
        traced: Traced network; its nodes' `meta` is changed.
        of_one: What it takes, for one image.
        of_two: What it takes, for that image and a second one.
    """
    with torch.inference_mode():
        kept: dict[str, Tensor] = {}
        _OneImage(traced, kept).run(*of_one)
        _TwoImages(traced, kept).run(*of_two)


# The square of what is larger is infinite.
_HUGE = 1e18
# Shares of one sum to it but for this.
_SHARE_TOLERANCE = 1e-3
# Of these operations' tensor, sizes and type alone are read.
FILLED = frozenset(
    "new_zeros new_ones new_full new_empty zeros_like ones_like full_like empty_like".split()
)


def _name(node: Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


class _OneImage(Interpreter):
    """An interpreter that notes shapes, and keeps the values whose first dimension is not 1."""

    def __init__(self, traced: GraphModule, kept: dict[str, Tensor]) -> None:
        super().__init__(traced)
        self.extra_traceback = False
        self._kept = kept

    def run_node(self, n: Node) -> Any:
        """Run a node and note what it holds."""
        value = super().run_node(n)
        if isinstance(value, Tensor):
            n.meta["shape"], n.meta["dtype"] = tuple(value.shape), value.dtype
            floats = value.is_floating_point()
            n.meta["moderate"] = not floats or bool((value.abs() < _HUGE).all())
            n.meta["sums_to_one"] = _sums_to_one(value)
            alone = value.dim() > 0 and value.shape[0] == 1
            # Of the others the values are needed; a copy, for they may be changed in place.
            self._kept[n.name] = value.new_zeros(1).expand(value.shape) if alone else value.clone()
        elif isinstance(value, tuple | list | dict):
            parts = value.values() if isinstance(value, dict) else value
            n.meta["holds_tensors"] = any(isinstance(part, Tensor) for part in parts)
        holds = "shape" in n.meta or n.meta.get("holds_tensors", False)
        read = [] if _name(n) in FILLED else n.all_input_nodes
        sources = any(source.meta.get("from_images") for source in read)
        n.meta["from_images"] = holds and (n.op == "placeholder" or sources)
        return value


def _sums_to_one(value: Tensor) -> bool:
    """Tell whether a value consists of shares, as a softmax gives them."""
    if value.dim() < 3 or not value.numel() or not value.is_floating_point():
        return False
    if bool((value < 0).any()):
        return False
    sums = (value.sum(dim) for dim in (-1, -2) if value.shape[dim] > 1)
    return any(bool(((total - 1).abs() < _SHARE_TOLERANCE).all()) for total in sums)


class _TwoImages(Interpreter):
    """An interpreter that notes where the images are in every value."""

    def __init__(self, traced: GraphModule, of_one: dict[str, Tensor]) -> None:
        super().__init__(traced)
        self.extra_traceback = False
        self._of_one = of_one

    def run_node(self, n: Node) -> Any:
        """Run a node and note the layout of its value."""
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.name in self._of_one:
            n.meta["layout"] = find_layout(self._of_one.pop(n.name), value)
        return value


def copy_shape(node: Node, source: Node) -> None:
    """Give a new node what is noted of another, whose value its own is like."""
    noted = "shape dtype moderate holds_tensors from_images layout sums_to_one".split()
    node.meta |= {key: source.meta[key] for key in noted if key in source.meta}
