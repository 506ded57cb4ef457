"""What parallel training, averaging and compiling wrap a network in is taken off."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ompq.errors import OmpqError
from ompq.graph import trace


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        AveragedModel,
        torch.compile,
        lambda network: nn.DataParallel(AveragedModel(network)),
        lambda network: torch.compile(nn.DataParallel(network)),
    ],
    ids=["parallel", "averaged", "compiled", "parallel average", "compiled parallel"],
)
def test_layers_have_the_names_of_the_network_itself(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).eval()
    graph = trace(wrap(network), (3, 4, 4))
    assert list(graph.layers) == ["0", "3"]
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(graph.module(images), network(images))


@torch.jit.script
def swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


def test_what_cannot_be_copied_is_told_in_one_line() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    network.swish = swish
    with pytest.raises(OmpqError, match="Sequential cannot be copied"):
        trace(network, (3, 8, 8))
