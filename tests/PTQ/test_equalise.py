"""Norms are made even without a change of what the network computes, where layers gain by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from evened import check_gain_and_file
from kinds import draw_images
from operating import Attention, Token, make, tokens
from torch import Tensor, nn

from ompq.assignment import uniform
from ompq.graph import NetworkGraph, fold_batch_norm, trace
from PTQ.equalise import equalise_norms

IMAGES = draw_images(48)


class AbsoluteNorm(nn.LayerNorm):
    """A norm that does not follow its weight."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).abs()


def make_network(norm: nn.Module, *, read_twice: bool = False, bias: bool = True) -> nn.Module:
    """Make a network whose second norm's channels have ranges from 1 to 100."""
    torch.manual_seed(0)
    spread = torch.logspace(0, 2, 8)
    for parameter in norm.parameters():
        parameter.data.copy_(spread if parameter is norm.weight else spread * torch.randn(8))

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.norm(net.a(net.token(tokens(x))))
        y = net.b(net.drop(x))
        return (y + x if read_twice else y).mean(1)

    parts = {"norm": norm, "b": nn.Linear(8, 8, bias=bias), "drop": nn.Dropout(0.1)}
    return make(forward, a=Attention("matmul"), token=Token(), **parts).eval()


def equalise(network: nn.Module) -> tuple[NetworkGraph, list[str]]:
    """Make norms even for 4 bits, and check that the network computes what it did."""
    graph = trace(network, (3, 16, 16))
    folded, told = fold_batch_norm(graph), list[str]()
    widths = uniform(graph.groups, 4, 4)
    equalise_norms(folded, widths.layer_bits(), widths.layer_act_bits(), IMAGES, told.append)
    with torch.no_grad():
        torch.testing.assert_close(folded.module(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-4)
    return folded, told


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["layer", "without bias", "root"])
def test_a_norm_is_made_even(kind: str, bias: bool) -> None:
    norms = {
        "layer": nn.LayerNorm(8),
        "without bias": nn.LayerNorm(8, bias=False),
        "root": nn.RMSNorm(8),
    }
    folded, told = equalise(make_network(norms[kind], bias=bias))
    weight = folded.module.get_submodule("norm").weight
    assert isinstance(weight, Tensor)
    assert float(weight.max() / weight.min()) < 50
    assert len(told) == 1 and "made even" in told[0]


class Named(nn.Module):
    """A network whose layer is called as the node of its output is, which a norm gives."""

    def __init__(self) -> None:
        super().__init__()
        self.output, self.norm = nn.Linear(3 * 16 * 16, 8), make_network(nn.LayerNorm(8)).norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.output(x.flatten(1)))


KEPT = ["another reader", "own function", "a layer of convolution", "the output"]


@pytest.mark.parametrize("kind", KEPT)
def test_a_norm_that_cannot_be_made_even_stays(kind: str) -> None:
    networks = {
        "the output": Named().eval(),
        "another reader": make_network(nn.LayerNorm(8), read_twice=True),
        "own function": make_network(AbsoluteNorm(8)),
    }
    network = networks.get(kind) or make(
        lambda net, x: net.b(net.norm(x.transpose(1, 3)).transpose(1, 3)),
        norm=nn.LayerNorm(8),
        b=nn.Conv2d(8, 8, 1),
    )
    before = network.get_submodule("norm").weight.detach().clone()
    folded, _ = equalise(network)
    assert torch.equal(folded.module.get_submodule("norm").weight, before)


def test_reconstruction_gains_and_the_file_and_fine_tuning_have_the_even_norms(
    tmp_path: Path,
) -> None:
    check_gain_and_file(make_network(nn.LayerNorm(8)), "equalise_norms", 4, 4, IMAGES, tmp_path)


def test_a_channel_that_hardly_moves_is_not_blown_up() -> None:
    norm = nn.LayerNorm(8)
    network = make_network(norm)
    norm.weight.data[0] = 0
    largest = 100 * norm.bias.detach().abs().max()
    folded, _ = equalise(network)
    bias = folded.module.get_submodule("norm").bias
    assert isinstance(bias, Tensor)
    assert bool((bias.abs() <= largest).all())
    weight = folded.module.get_submodule("b").weight
    assert isinstance(weight, Tensor)
    # Nothing is divided by less than a hundredth of what the widest channel is divided by.
    before = network.get_submodule("b").weight
    ratio = (weight.abs().amax(0) / before.abs().amax(0)).detach()
    assert float(ratio.max() / ratio.min()) <= 101


class ReadBeside(nn.Module):
    """A norm and a layer behind it, of which something is read beside as well."""

    def __init__(self, what: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.b = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.c, self.head, self.what = nn.Linear(8, 8), nn.Linear(8, 5), what
        self.norm.weight.data.copy_(torch.logspace(-1, 1, 8))
        self.norm.bias.data.normal_()
        if what == "bias of another layer":
            self.c.bias = self.b.bias

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(self.b(self.norm(self.stem(x.flatten(2).mT))).relu()).mean(1)
        if self.what == "weight of the layer":
            x = x + self.b.weight.square().mean()
        if self.what == "weight of the norm":
            x = x * self.norm.weight
        return self.head(x)


@pytest.mark.parametrize(
    "what", ["nothing", "bias of another layer", "weight of the layer", "weight of the norm"]
)
def test_what_is_read_beside_stays(what: str) -> None:
    _, told = equalise(ReadBeside(what).eval())
    assert bool(told) == (what == "nothing")
