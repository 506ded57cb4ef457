"""Networks cut into parts that compute the same, and activation quantizers set in."""

from __future__ import annotations

import pytest
import torch
from support import lively
from torch import Tensor, nn

from ompq.assignment import uniform
from ompq.graph import extract_subgraph, find_activation_sites, split_into_subgraphs, trace
from ompq.quantized import QuantizedWeight, make_quantizable
from ompq.quantizers import enabled, lp_scale, quantize
from ompq.zoo import load_network


class Awkward(nn.Module):
    """Sizes carried over blocks, a tuple of tensors, in-place operations on what is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        x = self.act(self.first(x))
        left, right = x.chunk(2, dim=1)
        x = torch.cat((left, self.second(right)), dim=1)
        y = self.third(x)
        y += x
        y = self.act(y).mean((2, 3))
        return self.last(y.view(count, -1))


NETWORKS = [
    "resnet18",
    "mobilenet_v2",
    "shufflenet_v2_x1_0",
    "densenet121",
    "timm:convnext_atto",
    "timm:tf_efficientnet_lite0",
    "awkward",
]


def build(name: str) -> tuple[nn.Module, int]:
    if name == "awkward":
        return Awkward().eval(), 16
    size = 224 if "deit" in name else 64
    return lively(load_network(name).module), size


@pytest.mark.parametrize("granularity", ["block", "layer"])
@pytest.mark.parametrize(
    "name",
    [
        *NETWORKS,
        pytest.param("timm:deit_tiny_patch16_224", marks=pytest.mark.slow),
        pytest.param("regnet_x_400mf", marks=pytest.mark.slow),
        pytest.param("resnet50", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_parts_in_order_compute_the_network(name: str, granularity: str) -> None:
    network, size = build(name)
    images = torch.randn(3, 3, size, size)
    expected = network(images)
    graph = trace(network, (3, size, size))
    prepared = make_quantizable(graph, uniform(graph.groups, 4))
    parts = split_into_subgraphs(prepared.graph, granularity)
    assert sorted(layer for part in parts for layer in part.layers) == sorted(graph.layers)
    values = {parts[0].inputs[0]: images}
    for part in parts:
        inputs = [values[name].clone() for name in part.inputs]
        outputs = extract_subgraph(prepared.module, part)(*inputs)
        values |= dict(zip(part.outputs, outputs, strict=True))
        if granularity == "block":
            assert len(part.inputs) == len(part.outputs) == 1
    assert torch.allclose(outputs[-1], expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


def test_every_layer_reads_a_quantized_value() -> None:
    network, size = build("awkward")
    graph = trace(network, (3, size, size))
    sites = find_activation_sites(graph)
    assert {layer for readers in sites.values() for layer in readers} == set(graph.layers)
    prepared = make_quantizable(graph, uniform(graph.groups, 2, 4))
    seen: dict[str, int] = {}

    def look(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0].unique().numel()

        return hook

    for name in graph.layers:
        prepared.graph.layer_module(name).register_forward_pre_hook(look(name))
    images = torch.randn(4, 3, size, size)
    with enabled(prepared.module):
        for quantizer in prepared.activations().values():
            quantizer.fit(torch.randn(1000))
        prepared.module(images)
    assert seen["first"] <= 2**8  # the images keep the bits of their pixels
    assert seen["second"] <= 2**4 and seen["third"] <= 2**4
    assert seen["last"] <= 2**8  # the classifier is pinned


def test_a_weight_is_what_its_integers_stand_for() -> None:
    network, size = build("awkward")
    graph = trace(network, (3, size, size))
    prepared = make_quantizable(graph, uniform(graph.groups, 4))
    weight = prepared.graph.layer_module("second").weight.detach().clone()
    params = lp_scale(weight, 4)
    prepared.set_weight("second", QuantizedWeight.of(quantize(weight, params), params))
    kept = prepared.weights["second"]
    assert kept.bits == 4 and kept.integers.dtype == torch.uint8
    assert torch.equal(prepared.graph.layer_module("second").weight, kept.values())
    assert torch.equal(graph.layer_module("second").weight, weight)
