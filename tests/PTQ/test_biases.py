"""Biases take back what quantization does to the means of layers."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import lively
from torch import Tensor, nn

from ompq import trace, uniform
from ompq.graph import extract_subgraph, split_into_subgraphs
from PTQ import Settings, quantize_network
from PTQ.biases import correct_biases, find_own_biases
from PTQ.examples import Examples

IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project = nn.Conv2d(16, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.expand(x))))
        return self.head(self.project(x).mean((2, 3)))


def make_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Depthwise().eval()


@given(seed=st.integers(0, 10**6), noise=st.floats(0.01, 0.5))
def test_corrected_layers_give_the_means_of_the_float_network(seed: int, noise: float) -> None:
    network = make_network(seed)
    graph = trace(network, (3, 8, 8))
    block = split_into_subgraphs(graph, "block")[0]
    source = extract_subgraph(graph.module, block)
    target = copy.deepcopy(source)
    with torch.no_grad():
        for name in block.layers:
            weight = target.get_submodule(name).weight
            weight.add_(torch.randn_like(weight) * noise * weight.std())
    examples = Examples([IMAGES], [IMAGES], source(IMAGES), [None], torch.device("cpu"))
    found = correct_biases(source, target, block.layers, examples, 2.0)
    if not found.biases:  # then the loss would not have fallen
        return
    assert found.loss_after < found.loss_before
    x, y = IMAGES.double(), IMAGES.double()
    for name in block.layers:
        before, after = (m.get_submodule(name).double() for m in (source, target))
        x, y = before(x), after(y)
        dims = [dim for dim in range(x.dim()) if dim != 1]
        torch.testing.assert_close(y.mean(dims), x.mean(dims), rtol=1e-4, atol=1e-5)
        if name in ("expand", "depthwise"):
            x, y = x.relu(), y.relu()


def test_a_correction_that_does_not_help_is_left_out() -> None:
    graph = trace(make_network(), (3, 8, 8))
    block = split_into_subgraphs(graph, "block")[0]
    source = extract_subgraph(graph.module, block)
    target = copy.deepcopy(source)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    examples = Examples([IMAGES], [IMAGES], source(IMAGES), [None], torch.device("cpu"))
    found = correct_biases(source, target, block.layers, examples, 2.0)
    assert not found.biases and found.loss_before is None
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name]), name


class Sharing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.first = nn.Conv2d(3, 3, 1)
        self.second = nn.Conv2d(3, 3, 1)
        self.second.bias = self.first.bias
        self.plain = nn.Conv2d(3, 3, 1, bias=False)
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(self.twice(torch.relu(self.twice(x)))))
        return self.head(self.plain(x).mean((2, 3)))


def test_biases_that_others_have_to_do_with_are_left_alone() -> None:
    network = lively(Sharing())
    graph = trace(network, (3, 8, 8))
    assert find_own_biases(graph) == {"head"}
    quantized, _ = quantize_network(
        graph,
        uniform(graph.groups, 3, 8),
        IMAGES,
        Settings(weight_iterations=0, act_iterations=0),
        say=lambda _: None,
    )
    # They are on the grid of the sums, and nothing else.
    for name in ("twice", "first", "second"):
        bias = quantized.graph.layer_module(name).bias
        torch.testing.assert_close(bias, network.get_submodule(name).bias, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("act_quant", [True, False])
def test_means_of_rounded_networks_come_back(act_quant: bool) -> None:
    network = make_network()
    graph = trace(network, (3, 8, 8))
    errors = {}
    for asked in (True, False):
        settings = Settings(
            weight_iterations=0,
            act_iterations=0,
            act_quant=act_quant,
            correct_biases=asked,
            vary_images=False,
        )
        quantized, reports = quantize_network(
            graph, uniform(graph.groups, 2, 8), IMAGES, settings, say=lambda _: None
        )
        told = [report for report in reports if report.bias_loss_after is not None]
        assert bool(told) == asked
        assert all("; biases " in report.format_line() for report in told)
        with torch.no_grad():
            difference = quantized.module(IMAGES) - network(IMAGES)
        errors[asked] = float(difference.mean(0).abs().mean())
    assert errors[True] < 0.5 * errors[False]
