"""Networks whose code asks about shapes, which torch.fx alone does not trace."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ompq.errors import OmpqError
from ompq.graph import trace

SHAPE = (3, 8, 8)


class _Asking(nn.Module):
    """A convolution, something that asks, and a classifier of eight channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.ones(8))
        self.classifier = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.ask(self.norm(self.conv(x)).relu()).mean((2, 3)))

    def ask(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class _PadsSmall(_Asking):
    def ask(self, x: Tensor) -> Tensor:
        if x.shape[-2] < 16 or x.shape[-1] < 16:
            x = F.adaptive_avg_pool2d(x, (max(16, x.shape[-2]), max(16, x.shape[-1])))
        return x


class _Asserts(_Asking):
    def ask(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        assert height % 2 == 0 and width == 8, f"images of {height} × {width}"
        assert channels == len(self.scale)
        return x * self.scale[None, :, None, None]


class _Loops(_Asking):
    def ask(self, x: Tensor) -> Tensor:
        pieces = [x[:, channel : channel + 1] * (channel + 1) for channel in range(x.size(1))]
        return torch.cat(pieces, 1)


class _Roots(_Asking):
    def ask(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        side = int(math.sqrt(tokens.shape[1]))
        grid = torch.linspace(0, 1, side)
        return tokens.transpose(1, 2).reshape(x.shape[0], -1, side, side) + grid


class _GoesThroughShape(_Asking):
    def ask(self, x: Tensor) -> Tensor:
        area = 1
        for side in x.shape[2:]:
            area *= int(side)
        return x.unflatten(1, (len(x.shape) // 2, -1)).flatten(1, 2) / area


class _AsksModules(_Asking):
    """It asks after a module whose parameters and submodules tracing would record."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def ask(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        if tokens.dim() == 3 and tokens.is_floating_point():
            tokens = tokens.transpose(1, 2).unflatten(2, (8, 8))
        return tokens


KINDS = [_PadsSmall, _Asserts, _Loops, _Roots, _GoesThroughShape, _AsksModules]


@pytest.mark.parametrize("kind", KINDS)
def test_questions_about_shapes_are_answered(kind: type[_Asking]) -> None:
    torch.manual_seed(0)
    network = kind().eval()
    found = trace(network, SHAPE)
    images = torch.randn(5, *SHAPE)
    torch.testing.assert_close(found.module(images), network(images))
    assert {"conv", "classifier"} <= set(found.layers)


def test_tracing_leaves_torch_as_it_was() -> None:
    call, read = nn.Module.__call__, nn.Module.__getattr__
    trace(_Loops(), SHAPE)
    assert nn.Module.__call__ is call and nn.Module.__getattr__ is read


def test_running_statistics_are_not_touched_by_the_trace_of_training() -> None:
    network = _PadsSmall().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = trace(network, SHAPE)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(found.module.get_buffer("norm.running_mean"), before["norm.running_mean"])


class _AsksValues(_Asking):
    def ask(self, x: Tensor) -> Tensor:
        return -x if x.max() > 1 else x


class _AsksImages(_Asking):
    def ask(self, x: Tensor) -> Tensor:
        return -x if x.shape[0] > 1 else x


class _LoopsOverImages(_Asking):
    def ask(self, x: Tensor) -> Tensor:
        return torch.stack([image * 2 for image in x])


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (_AsksValues, "x.max() > 1"),
        (_AsksImages, "x.shape[0] > 1"),
        (_LoopsOverImages, "for image in x"),
    ],
)
def test_what_depends_on_the_images_is_refused_with_its_line(
    kind: type[_Asking], line: str
) -> None:
    with pytest.raises(OmpqError) as caught:
        trace(kind(), SHAPE)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_the_line_that_stops_is_named_not_a_question_that_was_answered() -> None:
    class _Both(_Asking):
        def ask(self, x: Tensor) -> Tensor:
            x = x[:, :8] if x.shape[1] > 8 else x
            return -x if x.max() > 1 else x

    with pytest.raises(OmpqError, match="max"):
        trace(_Both(), SHAPE)


class _Caching(_Asking):
    """A network that keeps what it computes, in a cache that it has and in one that it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Tensor] = {}

    def ask(self, x: Tensor) -> Tensor:
        if "scale" not in self.kept:
            self.kept["scale"] = self.scale.view(-1, 1, 1) * 2
            self.last = [x]
        return x * self.kept["scale"]


def test_what_a_network_keeps_while_it_is_traced_is_forgotten() -> None:
    network = _Caching().eval()
    images = torch.randn(2, *SHAPE)
    with torch.no_grad():
        network.scale.uniform_(0.5, 2)
        graph = trace(network, SHAPE)
        assert not network.kept and not hasattr(network, "last")
        torch.testing.assert_close(graph.module(images), network(images))
