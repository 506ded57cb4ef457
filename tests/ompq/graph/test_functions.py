"""Functions of a network written as what integers compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kinds import Net, conv, pooled
from torch import Tensor, nn
from torch.nn import functional as F

from ompq.graph import trace
from ompq.graph.operations import operation

SIZE = (3, 12, 10)

AVERAGES: dict[str, tuple[Callable[[Net, Tensor], Tensor], int]] = {
    "a function": (lambda _, x: F.avg_pool2d(x, 3, 1, 1, False, False), 1),
    "keywords": (
        lambda _, x: F.avg_pool2d(x, kernel_size=(3, 2), padding=(1, 0), count_include_pad=False),
        1,
    ),
    "a module, twice": (lambda net, x: net.pool(net.pool(x)), 2),
    "of one image's maps": (
        lambda _, x: torch.stack([F.avg_pool2d(x[0], 3, 1, 1, count_include_pad=False)] * 1) + x,
        1,
    ),
    "no padding": (lambda _, x: F.avg_pool2d(x, 2, count_include_pad=False), 0),
    "windows beyond the border": (
        lambda _, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        0,
    ),
    "another divisor": (
        lambda _, x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False, divisor_override=4),
        0,
    ),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_that_leave_padding_out_compute_what_they_did(name: str) -> None:
    average, count = AVERAGES[name]
    torch.manual_seed(0)
    network = Net(
        lambda net, x: net.head(pooled(average(net, net.stem(x)))),
        stem=conv(3, 8),
        pool=nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        head=nn.Linear(8, 5),
    ).eval()
    images = torch.randn(1, *SIZE)
    graph = trace(network, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(graph.module(images), network(images))
    names = [operation(node, graph.module) for node in graph.module.graph.nodes]
    assert names.count("mul") == count
