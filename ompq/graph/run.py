"""Forward passes of a traced network that read features on the way."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, fx

from ompq.graph.network import NetworkGraph
from ompq.graph.operations import image_layout


class _TapReader(fx.Interpreter):
    """An interpreter of a traced network that shows the values of some nodes as they appear."""

    def __init__(self, graph: NetworkGraph, read: Callable[[str, Tensor], None], taps: set[str]):
        super().__init__(graph.module)
        self._read = read
        self._taps = taps
        self.images_first = True
        # Errors of the network stay as they are, without lines of torch.fx.
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._taps:
            layout = image_layout(n) if self.images_first else None
            self._read(n.name, value if layout is None else layout.split(value))
        return value


@torch.inference_mode()
def run_with_taps(
    graph: NetworkGraph,
    images: Tensor,
    taps: Collection[str],
    read: Callable[[str, Tensor], None],
    *,
    images_first: bool = True,
) -> Tensor:
    """Run one forward pass in which `read(tap, value)` sees each tapped value as it appears.

    Values are freed after their last use, as in any forward pass; `read` must not keep or change
    them.

    Args:
        graph: Traced network; it runs on the device of its parameters.
        images: Images, n × channels × height × width, normalised, on that device.
        taps: Names of graph nodes.
        read: Function that is called once per tap, in execution order.
        images_first: Whether values are arranged so that images are their first dimension,
            wherever the network has them.

    Returns:
        The network's output.
    """
    reader = _TapReader(graph, read, set(taps))
    reader.images_first = images_first
    output: Tensor = reader.run(images)
    return output
