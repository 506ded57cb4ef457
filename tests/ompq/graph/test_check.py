"""A wrong fold, a wrong rewrite and a spoilt layer are found where they are, and left out."""

from __future__ import annotations

import copy

import pytest
import torch
from kinds import Net, build_kind, conv, draw_images, pooled
from torch import Tensor, nn
from torch.nn.functional import relu

from ompq.errors import OmpqError
from ompq.graph import check_network, folding, trace
from ompq.graph.check import measure_difference
from ompq.graph.folding import fold_batch_norm

IMAGES = draw_images(4)


def build() -> nn.Module:
    """Build a network of three layers, the first two with batch norms that do something."""

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        return net.head(pooled(relu(net.norm2(net.b(relu(net.norm1(net.a(x))))))))

    torch.manual_seed(0)
    norms = {f"norm{k}": nn.BatchNorm2d(8) for k in (1, 2)}
    for norm in norms.values():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    parts = {"a": conv(3, 8, bias=False), "b": conv(8, 8), "head": nn.Linear(8, 5)}
    return Net(forward, **parts, **norms).eval()


def check(network: nn.Module) -> tuple[list[str], object]:
    said: list[str] = []
    graph = check_network(trace(network, (3, 16, 16)), IMAGES, said.append)
    with torch.inference_mode():
        folded = fold_batch_norm(graph)
        assert measure_difference(folded.module(IMAGES), network(IMAGES).flatten(1)) < 1e-4
    return said, graph


def test_a_sound_network_is_left_alone() -> None:
    said, graph = check(build())
    assert not said and graph.checked
    assert [layer.batch_norm for layer in graph.layers.values()] == ["norm1", "norm2", None]


@pytest.mark.parametrize("wrong", ["norm1", "norm2"])
def test_a_wrong_fold_is_found_and_left_out(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build()
    # The two norms have different statistics, whatever copy of them is folded.
    marked = network.get_submodule(wrong).running_mean.double().clone()
    real = folding.fuse_conv_bn_eval

    def fuse(layer: nn.Module, norm: nn.Module) -> nn.Module:
        fused = real(layer, norm)
        if torch.equal(norm.running_mean.double(), marked):
            fused.bias.data[3] += 0.01
        return fused

    monkeypatch.setattr(folding, "fuse_conv_bn_eval", fuse)
    said, graph = check(network)
    assert len(said) == 1 and said[0].startswith(f"{wrong} is not folded")
    assert graph.exclusions.norms == {wrong}
    assert wrong in graph.float_layers


def test_a_module_that_only_random_values_take_for_plain_is_found() -> None:
    class Thresholded(nn.Conv2d):
        """A convolution that clips where no random values of trial reach."""

        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).clamp(max=500.0)

    network = build()
    network.b = Thresholded(8, 8, 3, 1, 1)
    network.b.weight.data.mul_(3)
    network.norm1.weight.data.mul_(200)
    network.eval()
    said, graph = check(network)
    assert len(said) == 1 and "b stays in float" in said[0]
    assert "b" not in graph.layers and "b" in graph.float_layers


def test_what_torch_fx_does_not_see_is_refused_by_the_place() -> None:
    class Counting(nn.Module):
        """A network that computes with a number which tracing takes for a constant."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = build(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.inner.head(pooled(relu(self.inner.a(x)))) * min(self.calls, 2)

    network = Counting().eval()
    graph = trace(network, (3, 16, 16))
    graph.original.calls = 5
    with pytest.raises(OmpqError, match="computes something else than the network itself"):
        check_network(graph, IMAGES, lambda _: None)


def test_a_layer_that_8_bits_spoil_is_named_and_stays_in_float() -> None:
    network = build()
    # One weight of every filter so large that the step of 8 bits swallows all the others; what it
    # reads is zero.
    network.norm1.weight.data[0] = 0
    network.norm1.bias.data[0] = 0
    network.b.weight.data[:, 0] = 1e4
    said, graph = check(network)
    assert len(said) == 1 and said[0].startswith("b stays in float: 8 bits change its output")
    assert "8 bits" in graph.float_layers["b"]


def test_a_random_network_is_told() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(nn.functional.dropout(x, 0.5, training=True))

    said: list[str] = []
    check_network(trace(Noisy().eval(), (3, 16, 16)), IMAGES, said.append)
    assert any("other outputs at every run" in note for note in said)


def test_a_network_that_gives_nan_is_refused_by_the_place() -> None:
    network = build()
    network.norm2.running_var.neg_()
    with pytest.raises(
        OmpqError, match=r"gives NaN, first at norm2; .*positive.*images"
    ) as refused:
        check_network(trace(network, (3, 16, 16)), IMAGES)
    assert "\n" not in str(refused.value)


def test_nan_that_is_taken_away_is_not_blamed() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        y = torch.nan_to_num(torch.log(net.a(x)), 0.0, 0.0, 0.0)
        return net.head(pooled(relu(net.norm(net.b(y)))))

    norm = nn.BatchNorm2d(8)
    norm.running_var.fill_(-1)
    network = Net(forward, a=conv(3, 8), b=conv(8, 8), norm=norm, head=nn.Linear(8, 5)).eval()
    with pytest.raises(OmpqError, match="gives NaN, first at norm;"):
        check_network(trace(network, (3, 16, 16)), IMAGES)


def test_the_users_network_is_not_touched() -> None:
    network = build_kind("norm of another code")
    before = copy.deepcopy(network.state_dict())
    check(network)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
