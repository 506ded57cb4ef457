"""What is said of a layer is what its values show, and the hint is what helps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from converted import build
from kinds import KINDS, build_kind, draw_images
from support import lively
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ompq.adoption import adopt
from ompq.assignment import uniform
from ompq.debug import LayerComparison, compare_layers
from ompq.errors import OmpqError
from ompq.graph import fold_batch_norm, trace
from ompq.integer import IntegerNetwork
from ompq.quantized import QuantizedNetwork, QuantizedWeight, make_quantizable, simulate
from ompq.quantizers import dequantize, lp_scale, quantize


@pytest.fixture
def images() -> Tensor:
    return torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(512, 5),
    )
    lively(network)
    return network


def simulate_rounded(
    network: nn.Module, images: Tensor, weight_bits: int, act_bits: int, **how: bool
) -> QuantizedNetwork:
    """A network with weights rounded to nearest, and activations in use."""
    graph = trace(network, tuple(images.shape[1:]))
    made = make_quantizable(graph, uniform(graph.groups, weight_bits, act_bits))
    return put_to_use(made, images, weight_bits, **how)


def put_to_use(
    made: QuantizedNetwork, images: Tensor, weight_bits: int, **how: bool
) -> QuantizedNetwork:
    """Round the weights of a network, and let its activation quantizers fit the images."""
    for name in made.graph.layers:
        weight = made.graph.layer_module(name).weight.detach()
        params = lp_scale(weight, weight_bits, **{"symmetric": True, "per_channel": True} | how)
        made.set_weight(name, QuantizedWeight.of(quantize(weight, params), params))
    for quantizer in made.activations().values():
        quantizer.enabled = True
        quantizer.fit(images)
    return made


def decibels(exact: Tensor, found: Tensor) -> float:
    return 10 * math.log10(
        float(exact.double().square().sum() / (found.double() - exact.double()).square().sum())
    )


def test_ratios_are_those_of_the_formula(images: Tensor) -> None:
    network = make_network()
    quantized = build(network, images, 4)
    first = compare_layers(network, quantized, images)[0]
    folded = fold_batch_norm(trace(network, (3, 8, 8)))
    module = folded.layer_module(first.name)
    layer = quantized.layers()[first.name]
    integers, params = layer.quantize_weight()
    weight = dequantize(integers, params)
    held = layer.source.fake_quantizer
    scale, zero_point = held.get_scale(), int(held.zero_point)
    whole = torch.clamp(torch.round(images / scale) + zero_point, held.low, held.high)
    rounded = ((whole - zero_point) * scale).float()
    exact = module(images)
    found = conv2d(rounded, weight, module.bias, padding=1)
    assert first.weight == pytest.approx(decibels(module.weight, weight), abs=1e-3)
    assert first.given == pytest.approx(decibels(images, rounded), abs=1e-3)
    assert first.own == pytest.approx(decibels(exact, found), abs=1e-2)
    # The first layer has exact inputs in the network too; its bias is on the grid of its sums.
    assert first.output == pytest.approx(first.own, abs=0.5)
    assert (first.bits, first.act_bits) == (layer.fake_quantizer.bits, held.bits)


@pytest.mark.parametrize("kind", list(KINDS))
def test_networks_of_every_kind_have_a_line_per_layer(kind: str) -> None:
    network, images = build_kind(kind), draw_images(6)
    quantized = build(network, images)
    found = compare_layers(network, quantized, images)
    assert [layer.name for layer in found] == list(quantized.layers())
    for layer in found:
        assert layer.weight is not None and layer.weight > 25
        assert layer.output is None or layer.output > 10


def test_simulated_and_integers_tell_the_same(images: Tensor) -> None:
    network = make_network()
    # What integers adopt is folded already.
    network[0], network[1] = fuse_conv_bn_eval(network[0], network[1]), nn.Identity()
    integers = build(network, images, 4)
    folded = fold_batch_norm(trace(network, (3, 8, 8)))
    simulated = put_to_use(simulate(folded, integers.sites), images, 4)
    adopt(integers, simulated)
    ones, others = (compare_layers(network, of, images) for of in (simulated, integers))
    for one, other in zip(ones, others, strict=True):
        assert other.own == pytest.approx(one.own, abs=0.3)
        assert other.output == pytest.approx(one.output, abs=1.0)


def hint_of(quantized: QuantizedNetwork | IntegerNetwork, images: Tensor, layer: str) -> str:
    found = compare_layers(make_network(), quantized, images)
    return next(one.hint for one in found if one.name == layer)


def test_the_hint_is_what_the_noise_consists_of(images: Tensor) -> None:
    network = make_network()
    assert "more activation bits (now 2)" in hint_of(
        simulate_rounded(network, images, 8, 2), images, "3"
    )
    assert "more weight bits (now 2" in hint_of(
        simulate_rounded(network, images, 2, 8), images, "3"
    )
    assert not hint_of(simulate_rounded(network, images, 8, 8), images, "0")
    clipped = simulate_rounded(network, images, 8, 8)
    for quantizer in clipped.activations().values():
        quantizer.set(replace(quantizer.params, scale=quantizer.params.scale / 20))
    assert "inputs are clipped" in hint_of(clipped, images, "3")


def test_channels_of_unlike_size_ask_for_a_scale_each(images: Tensor) -> None:
    network = make_network()
    with torch.no_grad():
        network[3].weight[:6] *= 0.01
    quantized = simulate_rounded(network, images, 4, 8, per_channel=False)
    found = {layer.name: layer for layer in compare_layers(network, quantized, images)}["3"]
    assert found.dead_channels == 6
    assert "6 channels vanished" in found.hint


def test_one_sided_weights_ask_for_a_zero_point(images: Tensor) -> None:
    network = make_network()
    with torch.no_grad():
        network[3].weight.abs_()
    quantized = simulate_rounded(network, images, 3, 8)
    found = {layer.name: layer for layer in compare_layers(network, quantized, images)}["3"]
    assert "asymmetric" in found.hint
    better = simulate_rounded(network, images, 3, 8, symmetric=False)
    again = {layer.name: layer for layer in compare_layers(network, better, images)}["3"]
    assert again.own is not None and found.own is not None and again.own > found.own


def test_layers_that_attention_reads_by_itself_are_named() -> None:
    torch.manual_seed(0)

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 4, 4)
            self.mix = nn.MultiheadAttention(16, 2, batch_first=True)
            self.head = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).flatten(2).transpose(1, 2)
            return self.head(self.mix(x, x, x, need_weights=False)[0].mean(1))

    network, images = Attending().eval(), draw_images(4)
    found: list[LayerComparison] = compare_layers(network, build(network, images), images)
    assert all(layer.own is not None for layer in found if layer.name in ("stem", "head"))


def test_another_network_is_refused(images: Tensor) -> None:
    quantized = build(make_network(), images)
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval()
    with pytest.raises(OmpqError, match="another one"):
        compare_layers(other, quantized, images)
