"""Networks that look trained: batch norms with statistics of their own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

Randomise = Callable[[nn.Module], nn.Module]


@pytest.fixture
def randomise() -> Randomise:
    """Give every batch norm its own statistics, seeded; evaluation mode."""

    def apply(network: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.uniform_(module.weight, 0.5, 1.0)
                nn.init.uniform_(module.bias, -0.2, 0.2)
        return network.eval()

    return apply
