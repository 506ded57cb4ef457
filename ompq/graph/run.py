"""Forward passes of a traced network that read features on the way."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, fx

from ompq.graph.network import NetworkGraph


class _TapReader(fx.Interpreter):
    """An interpreter of a traced network that shows the values of some nodes as they appear."""

    def __init__(self, graph: NetworkGraph, read: Callable[[str, Tensor], None], taps: set[str]):
        super().__init__(graph.module)
        self._read = read
        self._taps = taps
        # Errors of the network stay as they are, without lines of torch.fx.
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._taps:
            self._read(n.name, value)
        return value


@torch.inference_mode()
def run_with_taps(
    graph: NetworkGraph, images: Tensor, taps: Collection[str], read: Callable[[str, Tensor], None]
) -> Tensor:
    """Run one forward pass in which `read(tap, value)` sees each tapped value as it appears.

    Values are freed after their last use, as in any forward pass; `read` must not keep or change
    them.

    Args:
        graph: Traced network; it runs on the device of its parameters.
        images: Images, n × channels × height × width, normalised, on that device.
        taps: Names of graph nodes.
        read: Function that is called once per tap, in execution order.

    Returns:
        The network's output.
    """
    output: Tensor = _TapReader(graph, read, set(taps)).run(images)
    return output
