"""Layers of other classes and changes in place: what the graph says is what the network does."""

from __future__ import annotations

import pytest
import torch
from support import lively
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from ompq.assignment import uniform
from ompq.graph import fold_batch_norm, trace
from ompq.graph.canonicalize import same_padding
from ompq.integer import ConversionSettings, IntegerExecution, convert_to_integers, export_integers
from ompq.integer.calibration import calibrate
from ompq.zoo import load_network

CPU = torch.device("cpu")


class Standardised(nn.Conv2d):
    """Weight standardisation: the weight that multiplies is not the parameter."""

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class Renamed(nn.Linear):
    """Does what its base class does."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class Unusual(nn.Module):
    """One layer of each kind, the last one plain."""

    def __init__(self) -> None:
        super().__init__()
        self.standardised = Standardised(3, 4, 3)
        self.normed = weight_norm(nn.Conv2d(4, 4, 1))
        self.free = nn.BatchNorm2d(4, track_running_stats=False)
        self.renamed = Renamed(4, 6)
        self.last = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.free(self.normed(self.standardised(x)))
        return self.last(self.renamed(x.mean((2, 3))))


def test_layers_that_compute_otherwise_stay_in_float_and_are_named() -> None:
    torch.manual_seed(0)
    network = Unusual().eval()
    graph = trace(network, (3, 8, 8))
    assert list(graph.layers) == ["renamed", "last"]
    assert "otherwise" in graph.float_layers["standardised"]
    assert "anew" in graph.float_layers["normed"]
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(fold_batch_norm(graph).module(images), network(images))


@pytest.mark.parametrize("size", [(64, 64), (65, 49)])
def test_a_convolution_that_pads_by_itself_is_padded_and_plain(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = lively(load_network("timm:tf_efficientnet_lite0", num_classes=7).module)
    graph = trace(module, (3, *size))
    assert not graph.float_layers
    assert type(graph.layer_module("conv_stem")) is nn.Conv2d
    images = torch.randn(4, 3, *size)
    chosen = uniform(graph.groups, 4, 6)
    network = convert_to_integers(
        graph, chosen.layer_bits(), chosen.layer_act_bits(), ConversionSettings()
    )
    network.enable(False)
    with torch.no_grad():
        assert torch.equal(network.module.eval()(images), module(images))
    network.enable(True)
    calibrate(network, [images], CPU)
    simulated = network.module(images)
    executed = IntegerExecution(network, export_integers(network)).logits(images)
    assert torch.equal(executed, simulated)
    assert simulated.std() > 0


def test_same_padding_gives_as_many_outputs_as_strides() -> None:
    for size, kernel, stride, dilation in ((7, 3, 2, 1), (8, 3, 2, 1), (9, 5, 3, 2), (4, 1, 2, 1)):
        x = torch.ones(1, 1, size, size + 1)
        padded = same_padding(x, (kernel, kernel), (stride, stride), (dilation, dilation))
        out = functional.conv2d(padded, torch.ones(1, 1, kernel, kernel), None, stride, 0, dilation)
        assert out.shape[2:] == (-(-size // stride), -(-(size + 1) // stride))
        assert padded.sum() == x.sum()


class InPlace(nn.Module):
    """Reads `r` again after the ReLU has changed it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        r = self.first(x)
        y = functional.relu(r, inplace=True)
        z = self.second(y) + r
        z += y
        return self.last(z.mean((2, 3)))


def test_values_changed_in_place_are_read_as_they_are() -> None:
    torch.manual_seed(0)
    module = InPlace().eval()
    graph = trace(module, (3, 8, 8))
    images = torch.randn(6, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(graph.module(images), module(images))
    nodes = {node.name: node for node in graph.module.graph.nodes}
    assert [user.name for user in nodes["first"].users] == ["relu"]
    chosen = uniform(graph.groups, 4, 6)
    network = convert_to_integers(
        graph, chosen.layer_bits(), chosen.layer_act_bits(), ConversionSettings()
    )
    calibrate(network, [images], CPU)
    executed = IntegerExecution(network, export_integers(network)).logits(images)
    assert torch.equal(executed, network.module(images))
