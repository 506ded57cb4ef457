"""Steps that a network takes in training alone: kept and active there, absent in evaluation."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from ompq.graph import trace
from ompq.graph.training_mode import describe_training, switch_arguments

SIZE = (3, 6, 6)


class OwnDrop(nn.Module):
    """Whole images dropped, written as users write it."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return x
        kept = torch.rand(x.shape[0], 1, 1, 1) >= self.share
        return x * kept / (1 - self.share)


class Dropping(nn.Module):
    """One step of dropping between a layer and the output."""

    def __init__(self, kind: str, share: float) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        self.kind, self.share = kind, share
        modules = {"timm": DropPath, "own": OwnDrop}
        self.step = modules[kind](share) if kind in modules else nn.Identity()
        if kind in ("row", "batch"):
            self.step = StochasticDepth(share, kind)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.kind == "function":
            return F.dropout(x, self.share, self.training)
        if self.kind == "in place":
            changed = x
            F.dropout(changed, p=self.share, training=self.training, inplace=True)
            return x
        if self.kind == "channels":
            return F.dropout2d(x, training=self.training, p=self.share)
        if self.kind == "torch":
            return torch.dropout(x, self.share, self.training)
        return self.step(x)


UNITS = {"channels": (2, 3), "timm": (1, 2, 3), "own": (1, 2, 3), "row": (1, 2, 3)}


@pytest.mark.parametrize(
    "kind",
    ["function", "in place", "channels", "torch", "batch", "row", "timm", "own"],
)
def test_what_is_dropped_in_training_has_its_share_and_its_size(kind: str) -> None:
    torch.manual_seed(0)
    network = Dropping(kind, 0.25).eval()
    traced = trace(network, SIZE).module
    images = torch.randn(256, *SIZE)
    expected = network(images)
    assert torch.equal(traced(images), expected)
    traced.train()
    if kind == "batch":
        found = [bool((traced(images[:2]) == 0).all()) for _ in range(400)]
        assert sum(found) / 400 == pytest.approx(0.25, abs=0.07)
        return
    out = traced(images)
    dropped = out == 0
    # Whole channels or images go together.
    dims = UNITS.get(kind)
    units = dropped if dims is None else dropped.float().mean(dims)
    assert ((units == 0) | (units == 1)).all()
    assert float(units.float().mean()) == pytest.approx(0.25, abs=0.1 if dims else 0.02)
    torch.testing.assert_close(out, torch.where(dropped, 0.0, expected / 0.75))
    assert not torch.equal(traced(images), out), "drawn anew for every batch"
    assert torch.equal(traced.eval()(images), expected)


@pytest.mark.parametrize("kind", ["function", "timm", "own"])
def test_nothing_is_dropped_where_the_share_is_zero(kind: str) -> None:
    traced = trace(Dropping(kind, 0.0).eval(), SIZE).module
    images = torch.randn(4, *SIZE)
    assert torch.equal(traced.train()(images), traced.eval()(images))


class Attending(nn.Module):
    """Attention that drops in training, with counting, noise and a softmax by mode."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.training:
            self.count += 1
            x = x + torch.randn_like(x)
        x = x.flatten(2).transpose(1, 2)
        share = 0.5 if self.training else 0.0
        x = F.scaled_dot_product_attention(x, x, x, dropout_p=share)
        x = self.head(x.mean(1))
        return x if self.training else x.softmax(1)


def test_arguments_change_with_the_mode_and_the_rest_is_told() -> None:
    network = Attending().eval()
    traced = trace(network, SIZE).module
    left_out, kept = describe_training(traced)
    assert "in training alone: randn_like" in left_out and "add" in left_out
    assert kept.endswith("in evaluation alone: softmax")
    assert network.count == 0, "the user's network is not changed"
    copied = copy.deepcopy(traced)
    for module in (traced, copied):
        switch_arguments(module)
        images = torch.randn(4, *SIZE)
        torch.testing.assert_close(module(images), network(images))
        module.train()
        assert not torch.equal(module(images), module(images))
        torch.testing.assert_close(module.eval()(images), network(images))


class Unsuited(nn.Module):
    """A network that looks at values in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return x / x.std() if self.training and x.std() > 1 else x


def test_what_cannot_be_traced_in_training_is_told() -> None:
    (note,) = describe_training(trace(Unsuited(), SIZE).module)
    assert "fine-tuned as in evaluation" in note and "x.std() > 1" in note


def test_a_network_without_such_steps_has_no_notes() -> None:
    traced = trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Dropout()).eval(), SIZE)
    assert describe_training(traced.module) == ()
