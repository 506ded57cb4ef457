"""Networks of every kind keep their outputs at 8 bits, whatever their parts hand on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kinds import KINDS, Net, build_kind, conv, draw_images, pooled
from torch import Tensor, nn
from torch.nn.functional import relu

from ompq import load_quantized, save_quantized, uniform
from ompq.graph import trace_for
from ompq.graph.check import measure_difference
from PTQ import Settings, quantize_network

IMAGES = draw_images(24)


@pytest.mark.parametrize("granularity", ["block", "layer"])
@pytest.mark.parametrize("kind", KINDS)
def test_8_bits_keep_the_outputs(kind: str, granularity: str, tmp_path: Path) -> None:
    network = build_kind(kind)
    graph = trace_for(network, IMAGES)
    settings = Settings(
        weight_iterations=4,
        act_iterations=4,
        batch_size=8,
        granularity=granularity,
        loss="fisher_diag" if granularity == "layer" else "mse",
        drop_probability=0.5 if granularity == "layer" else None,
    )
    assignment = uniform(graph.groups, 8)
    quantized, _ = quantize_network(graph, assignment, IMAGES, settings, say=lambda _: None)
    with torch.inference_mode():
        expected = network(IMAGES).flatten(1)
        found = quantized.module(IMAGES)
        assert measure_difference(found, expected) < 0.01
        save_quantized(tmp_path / "q.safetensors", quantized, assignment)
        read = load_quantized(tmp_path / "q.safetensors", network)
        assert torch.equal(read.network.module(IMAGES), quantized.deployed.module(IMAGES))


def test_layers_that_share_a_weight_share_its_integers() -> None:
    graph = trace_for(build_kind("tied weights"), IMAGES)
    chosen = uniform(graph.groups, 3)
    settings = Settings(weight_iterations=20, act_iterations=2, batch_size=8, granularity="layer")
    quantized, _ = quantize_network(graph, chosen, IMAGES, settings, say=lambda _: None)
    weights, widths = quantized.weights, chosen.layer_bits()
    assert widths["a"] == widths["b"] == weights["a"].bits == weights["b"].bits == 3
    assert torch.equal(weights["a"].integers, weights["b"].integers)
    for layer in ("a", "b"):
        assert torch.equal(quantized.graph.layer_module(layer).weight, weights[layer].values())


def test_a_layer_that_is_called_on_several_values_has_the_range_of_all() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = relu(net.stem(x))
        large = relu(net.a(8 * x))
        return net.head(pooled(large + relu(net.a(x)) + relu(net.a(x / 8))))

    torch.manual_seed(0)
    network = Net(forward, stem=conv(3, 8, 2), a=conv(8, 8), head=nn.Linear(8, 5)).eval()
    graph = trace_for(network, IMAGES)
    settings = Settings(weight_iterations=0, act_iterations=0)
    quantized, _ = quantize_network(graph, uniform(graph.groups, 8), IMAGES, settings, say=str)
    with torch.inference_mode():
        found = quantized.deployed.module(IMAGES)
        assert measure_difference(found, network(IMAGES)) < 0.02
