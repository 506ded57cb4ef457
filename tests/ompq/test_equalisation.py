"""Channels between layers are made even without a change of what the network computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from evened import check_gain_and_file
from kinds import draw_images
from operating import Net, make
from torch import Tensor, nn

from ompq.assignment import uniform
from ompq.equalisation import equalise_layers
from ompq.graph import NetworkGraph, fold_batch_norm, trace

IMAGES = draw_images(48)


def spread(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Give a layer channels of ranges from 1 to 100."""
    factors = torch.logspace(0, 2, len(layer.weight))
    layer.weight.data.mul_(factors.view((-1,) + (1,) * (layer.weight.dim() - 1)))
    if layer.bias is not None:
        layer.bias.data.mul_(factors)
    return layer


def build(body, outputs: int = 8, **parts: nn.Module) -> Net:
    torch.manual_seed(0)
    return make(body, outputs, a=spread(nn.Conv2d(8, 8, 3, padding=1)), **parts).eval()


def equalise(network: nn.Module) -> tuple[NetworkGraph, list[str]]:
    """Make channels even for 4 bits, and check that the network computes what it did."""
    graph = trace(network, (3, 16, 16))
    folded, told = fold_batch_norm(graph), list[str]()
    widths = uniform(graph.groups, 4, 4)
    equalise_layers(folded, widths.layer_bits(), widths.layer_act_bits(), IMAGES, told.append)
    with torch.no_grad():
        before, after = network(IMAGES), folded.module(IMAGES)
        assert torch.allclose(after, before, 1e-4, 1e-5 * float(before.abs().max()))
    return folded, told


def read_weight(network: nn.Module, layer: str) -> Tensor:
    weight = network.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def measure_spread(weight: Tensor) -> float:
    ranges = weight.flatten(1).abs().amax(1)
    return float(ranges.max() / ranges.min())


def conv(**options: int) -> nn.Conv2d:
    return nn.Conv2d(8, 8, 3, padding=1, **options)


EVEN = {
    "relu": lambda: build(lambda net, x: net.b(F.relu(net.a(x))), b=conv()),
    "nothing": lambda: build(lambda net, x: net.b(net.a(x)), b=conv()),
    "leaky relu and a pool": lambda: build(
        lambda net, x: net.b(F.max_pool2d(F.leaky_relu(net.a(x)), 2)), b=conv()
    ),
    "in place, dropout, padding": lambda: build(
        lambda net, x: net.b(net.p(net.d(net.r(net.a(x))))),
        r=nn.ReLU(True), d=nn.Dropout(0.5), p=nn.ZeroPad2d(1), b=conv(),
    ),
    "depthwise": lambda: build(lambda net, x: net.b(F.relu(net.a(x))), b=conv(groups=8)),
    "groups": lambda: build(lambda net, x: net.b(F.relu(net.a(x))), b=conv(groups=2)),
    "two readers": lambda: build(
        lambda net, x: net.b(y := F.relu(net.a(x))) + net.c(y), b=conv(), c=conv(groups=4)
    ),
    "flattened": lambda: build(
        lambda net, x: net.b(F.avg_pool2d(F.relu(net.a(x)), 4).flatten(1)), b=nn.Linear(32, 8)
    ),
    "reshaped by its size": lambda: build(
        lambda net, x: net.b((y := F.relu(net.a(x)).mean((2, 3))).view(y.size(0), -1)),
        b=nn.Linear(8, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", EVEN)
def test_channels_are_made_even(kind: str) -> None:
    network = EVEN[kind]()
    folded, told = equalise(network)
    assert len(told) == 1 and "made even" in told[0]
    before = measure_spread(read_weight(network, "a"))
    assert measure_spread(read_weight(folded.module, "a")) < before / 2


LEFT = {
    "relu6": lambda: build(lambda net, x: net.b(F.relu6(net.a(x) / 1e4)), b=conv()),
    "gelu": lambda: build(lambda net, x: net.b(F.gelu(net.a(x))), b=conv()),
    "read beside": lambda: build(lambda net, x: net.b(y := F.relu(net.a(x))) + y, b=conv()),
    "normalised over channels": lambda: build(
        lambda net, x: net.b(net.n(net.a(x))), n=nn.GroupNorm(2, 8), b=conv()
    ),
    "turned": lambda: build(lambda net, x: net.b(net.a(x).transpose(1, 2)), b=conv()),
    "called twice": lambda: build(lambda net, x: net.b(net.a(net.a(x))), b=conv()),
    "read twice by one": lambda: build(lambda net, x: net.b(net.b(F.relu(net.a(x)))), b=conv()),
    "other channels beside": lambda: build(
        lambda net, x: net.b(torch.cat([F.relu(net.a(x)), x], 1)), b=nn.Conv2d(16, 8, 1)
    ),
    "fewer channels": lambda: build(lambda net, x: net.b(F.glu(net.a(x), 1)), b=nn.Conv2d(4, 8, 1)),
    "channels in space": lambda: build(
        lambda net, x: net.b(F.pixel_shuffle(net.a(x), 2)), b=nn.Conv2d(2, 8, 1)
    ),
    "another layer": lambda: build(
        lambda net, x: net.b(net.u(net.a(x))),
        u=nn.ConvTranspose2d(8, 5, 2, 2),
        b=nn.Conv2d(5, 8, 1),
    ),
    "something added": lambda: build(lambda net, x: net.b(F.relu(net.a(x) + 1)), b=conv()),
}


@pytest.mark.parametrize("kind", LEFT)
def test_channels_that_cannot_be_made_even_stay(kind: str) -> None:
    network = LEFT[kind]()
    folded, _ = equalise(network)
    assert torch.equal(read_weight(folded.module, "a"), read_weight(network, "a"))


class SharedBias(nn.Module):
    """Two layers that add one bias, the first of them before an activation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = spread(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.head, self.c.bias = nn.Linear(8, 5), self.a.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))).mean((2, 3)))


class ReadBeside(SharedBias):
    """A layer whose weight is read by a function as well."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.b.weight.square().mean()


class LooksUp(nn.Module):
    """A table that is read at what the channels come to, as long as they are not far apart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = spread(conv_of(3)), conv_of(8), nn.Linear(8, 5)
        self.table = nn.Embedding(2000, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.a(x))).mean((2, 3))
        return self.head(y) + self.table((1000 + y.mean(1)).round().long())


def conv_of(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, 8, 3)


@pytest.mark.parametrize("kind", [SharedBias, ReadBeside, LooksUp])
def test_what_else_reads_a_layer_or_its_values_computes_what_it_did(
    kind: type[nn.Module],
) -> None:
    network = kind().eval()
    folded, _ = equalise(network)
    shared = {SharedBias: "a", ReadBeside: "b"}.get(kind)
    if shared is not None:
        assert torch.equal(read_weight(folded.module, shared), read_weight(network, shared))


def test_values_that_are_no_numbers_are_left() -> None:
    network = build(lambda net, x: net.b(net.n(net.a(x))), n=nn.BatchNorm2d(8), b=conv())
    network.get_submodule("n").running_var.fill_(-1)
    graph = trace(network, (3, 16, 16))
    widths, told = uniform(graph.groups, 4, 4), list[str]()
    equalise_layers(graph, widths.layer_bits(), widths.layer_act_bits(), IMAGES, told.append)
    assert not told


def test_reconstruction_gains_and_the_file_and_fine_tuning_have_the_even_channels(
    tmp_path: Path,
) -> None:
    check_gain_and_file(EVEN["relu"](), "equalise_layers", 8, 3, IMAGES, tmp_path)
