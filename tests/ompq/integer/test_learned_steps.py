"""Learned step sizes of layers with a batch norm: what is rounded does not move with statistics."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import conv2d

from ompq import trace, uniform
from ompq.integer import (
    ConversionSettings,
    IntegerNetwork,
    RangeRule,
    calibrate,
    convert_to_integers,
    start_learning_steps,
)
from ompq.quantizers import dequantize

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(torch.relu(self.stem(x))))).mean((2, 3)))


def start_learning(
    seed: int, bits: int, per_channel: bool = True, act_bits: int = 8
) -> IntegerNetwork:
    """A network whose batch norm has gains of both signs."""
    torch.manual_seed(seed)
    network = Network()
    with torch.no_grad():
        network.norm.weight.copy_(torch.randn(8) + 0.1)
        network.norm.bias.normal_()
        network.norm.running_mean.normal_()
        network.norm.running_var.uniform_(0.2, 3)
    graph = trace(network.eval(), (3, 8, 8))
    widths = uniform(graph.groups, bits, act_bits)
    rule = ConversionSettings(RangeRule(per_channel=per_channel), learned=True)
    converted = convert_to_integers(graph, widths.layer_bits(), widths.layer_act_bits(), rule)
    calibrate(converted, [IMAGES], torch.device("cpu"))
    start_learning_steps(converted, per_channel)
    return converted


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 8))
def test_integers_stay_when_statistics_move(seed: int, bits: int) -> None:
    layer = start_learning(seed, bits).layers()["conv"]
    before, params = layer.quantize_weight()
    assert layer.fake_quantizer.low <= int(before.min())
    assert int(before.max()) <= layer.fake_quantizer.high
    factors = torch.rand(8) + 0.5
    layer.norm.running_var.mul_(factors)
    layer.norm.running_mean.normal_()
    after, moved = layer.quantize_weight()
    assert torch.equal(after, before)
    torch.testing.assert_close(moved.scale, params.scale / factors.sqrt(), rtol=1e-3, atol=0)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 8))
def test_what_is_trained_is_what_is_deployed(seed: int, bits: int) -> None:
    layer = start_learning(seed, bits).layers()["conv"]
    folded = layer.fold()[0].detach()
    integers, params = layer.quantize_weight()
    deployed = dequantize(integers, params)
    # Rounded to the nearest step of its channel, or to the end of the range.
    steps = (folded / params.scale.view(-1, 1, 1, 1)).clamp(params.low, params.high)
    assert float((steps - integers).abs().max()) <= 0.5 + 1e-4
    layer.train()
    layer.freeze_norm = True
    layer.enabled = True
    x = layer.source(IMAGES.relu()).float()
    trained = layer(x)
    expected = conv2d(x, deployed, padding=1) + layer.fold()[1].view(-1, 1, 1)
    # The bias alone is rounded further, to the grid of the sums.
    grid = float((params.scale * layer.source.get_scale()).max())
    torch.testing.assert_close(trained, expected, rtol=1e-3, atol=0.51 * grid + 1e-4)
    trained.square().mean().backward()
    assert layer.layer.weight.grad.isfinite().all()
    assert layer.fake_quantizer.scale.grad.isfinite().all()


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), act_bits=st.integers(2, 7))
def test_activations_start_where_their_error_is_least(seed: int, act_bits: int) -> None:
    """At two bits of a long-tailed range, little but zero would be left of it."""
    network = start_learning(seed, 8, act_bits=act_bits)
    quantizer = next(
        q.fake_quantizer for q in network.requantizers().values() if q.fake_quantizer.bits < 8
    )
    seen: list[Tensor] = []
    quantizer.register_forward_pre_hook(lambda _, given: seen.append(given[0].clamp(*given[1])))
    with torch.no_grad():
        network.module.train()(IMAGES)
    values = seen[0]
    levels = 2**act_bits - 1

    def measure_error(scale: float) -> float:
        rounded = (values / scale).round().clamp(0, levels) * scale
        return float((rounded - values).abs().pow(2.4).sum())

    found = float(quantizer.get_scale())
    whole = float(values.max()) / levels
    shares = [1 - k / 100 for k in range(80)]
    assert measure_error(found) <= 1.05 * min(measure_error(whole * share) for share in shares)
