"""Networks of integers: rounding, structure, and equality with integer arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import lively
from torch import Tensor, nn

from ompq import artifact
from ompq.assignment import uniform
from ompq.errors import OmpqError
from ompq.graph import trace
from ompq.integer import (
    ConversionSettings,
    IntegerExecution,
    IntegerNetwork,
    RangeRule,
    calibrate,
    convert_to_integers,
    export_integers,
    start_learning_steps,
)
from ompq.integer.dyadic import Dyadic
from ompq.integer.fake_quantizers import (
    ActivationFakeQuantizer,
    LearnedActivationFakeQuantizer,
    WeightFakeQuantizer,
)
from ompq.quantizers import QuantParams
from ompq.zoo import load_network

NETWORKS = """small_resnet resnet18 mobilenet_v2 squeezenet1_1 googlenet regnet_x_400mf
shufflenet_v2_x0_5 efficientnet_lite0""".split()


def converted(
    module: nn.Module, side: int = 32, bits: int = 4, act_bits: int = 6, **changes: object
) -> IntegerNetwork:
    graph = trace(module, (3, side, side))
    chosen = uniform(graph.groups, bits, act_bits)
    settings = replace(ConversionSettings(), **changes)  # type: ignore[arg-type]
    return convert_to_integers(graph, chosen.layer_bits(), chosen.layer_act_bits(), settings)


def calibrated(network: IntegerNetwork, images: Tensor) -> IntegerNetwork:
    network.freeze_norms()
    with torch.no_grad():
        network.module.train()(images)
    network.module.eval()
    return network


@given(st.floats(1e-9, 1e5), st.lists(st.integers(-(2**31) + 1, 2**31 - 1), min_size=1))
def test_rescaling_by_integers_is_rounding_to_nearest_and_equals_float64(
    factor: float, values: list[int]
) -> None:
    dyadic = Dyadic.approximate(torch.tensor(factor))
    whole = torch.tensor(values)
    scaled = dyadic.apply(whole)
    assert torch.equal(scaled.double(), dyadic.apply_float(whole.double()))
    exact = int(dyadic.multiplier) / 2 ** int(dyadic.shift)
    assert exact == pytest.approx(float(torch.tensor(factor)), rel=2**-21)
    for value, result in zip(values, scaled.tolist(), strict=True):
        numerator = value * int(dyadic.multiplier)
        assert result == (2 * numerator + 2 ** int(dyadic.shift)) // 2 ** (int(dyadic.shift) + 1)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), 2.0**21])
def test_a_factor_that_is_no_ratio_of_scales_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="dyadic"):
        Dyadic.approximate(torch.tensor(factor))


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_equals_integer_arithmetic_to_the_bit(name: str) -> None:
    torch.manual_seed(0)
    module = lively(load_network(name, num_classes=7).module)
    side = 32 if name in ("small_resnet", "resnet18", "mobilenet_v2") else 64
    network = calibrated(converted(module, side), torch.randn(8, 3, side, side))
    assert network.runs_on_integers, network.float_operations
    images = torch.randn(5, 3, side, side)
    with torch.no_grad():
        simulated = network.module(images)
    executed = IntegerExecution(network, export_integers(network)).logits(images)
    assert torch.equal(executed, simulated)
    assert simulated.std() > 0


@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v2", "densenet121", "timm:convnext_atto", "timm:resnetv2_50d_gn"],
)
def test_without_quantization_it_is_the_float_network(name: str) -> None:
    module = lively(load_network(name, num_classes=7).module)
    network = converted(module)
    network.enable(False)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network.module.eval()(images), module(images))


def test_norms_that_follow_no_layer_keep_their_statistics_when_told() -> None:
    torch.manual_seed(0)
    module = lively(load_network("densenet121", num_classes=7).module)
    network = converted(module)
    images = torch.randn(4, 3, 32, 32)

    def statistics() -> list[Tensor]:
        state = network.module.state_dict()
        return [value.clone() for name, value in state.items() if "running_" in name]

    before = statistics()
    calibrate(network, [images], torch.device("cpu"))
    assert all(map(torch.equal, before, statistics()))
    network.module.train()(images)
    assert not any(map(torch.equal, before, statistics()))
    moved = statistics()
    network.freeze_norms()
    network.module.train()(images)
    assert all(map(torch.equal, moved, statistics()))


@pytest.mark.parametrize("learned", [False, True])
def test_an_activation_that_is_always_zero_does_no_harm(learned: bool) -> None:
    torch.manual_seed(0)
    module = lively(load_network("small_resnet").module)
    first = next(m for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        first.weight.zero_()
        first.bias.fill_(-1)
    network = calibrated(converted(module, 16, learned=learned), torch.randn(8, 3, 16, 16))
    images = torch.randn(3, 3, 16, 16)
    executed = IntegerExecution(network, export_integers(network)).logits(images)
    assert torch.equal(executed, network.module(images))


def test_a_learned_step_that_crosses_zero_is_its_magnitude() -> None:
    fake_quantizer = LearnedActivationFakeQuantizer(4, RangeRule())
    fake_quantizer.observe(torch.linspace(0, 3, 31))
    fake_quantizer.observing = False
    values = torch.rand(2, 50) * 3
    with torch.no_grad():
        expected = fake_quantizer(values)
        fake_quantizer.scale.neg_()
        assert torch.allclose(fake_quantizer(values), expected)
    assert fake_quantizer.get_scale() > 0


def test_more_bits_come_closer_to_the_float_network() -> None:
    module = lively(load_network("small_resnet").module)
    images = torch.randn(8, 3, 16, 16)
    errors = []
    with torch.no_grad():
        expected = module(images)
        for bits in (2, 4, 6, 8):
            network = calibrated(converted(module, 16, bits, bits), images)
            errors.append(float((network.module(images) - expected).norm() / expected.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02


@pytest.mark.parametrize("follows_channels", [True, False])
def test_batch_norm_in_training_is_that_of_the_unfolded_network(follows_channels: bool) -> None:
    """Without rounding, outputs, gradients and running statistics agree."""
    torch.manual_seed(0)
    module = lively(load_network("small_resnet").module)
    network = converted(module, 16, 8, 8)
    network.enable(True)
    for layer in network.layers().values():
        layer.fake_quantizer = _Identity(follows_channels)  # type: ignore[assignment]
        layer.bias_bits = 0
    for requantizer in network.requantizers().values():
        requantizer.enabled = False
    images = torch.randn(8, 3, 16, 16)
    expected, found = module.train()(images), network.module.train()(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    expected.square().sum().backward()
    found.square().sum().backward()
    twins = dict(module.named_parameters())
    for name, layer in network.layers().items():
        wanted = twins[f"{name}.weight"].grad
        assert wanted is not None
        torch.testing.assert_close(layer.layer.weight.grad, wanted, rtol=2e-3, atol=1e-4)
    running = [b for n, b in module.named_buffers() if n.endswith("running_var")]
    ours = [b for n, b in network.module.named_buffers() if n.endswith("running_var")]
    for one, other in zip(ours, running, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


class _Identity(nn.Module):
    bits = 8

    def __init__(self, follows_channels: bool) -> None:
        super().__init__()
        self.follows_channels = follows_channels

    def compute_params(self, weight: Tensor) -> QuantParams:
        channels = len(weight)
        return QuantParams(
            torch.ones(channels), torch.zeros(channels, dtype=torch.int32), -128, 127
        )

    def forward(self, weight: Tensor, params: QuantParams, sign: Tensor | None = None) -> Tensor:
        return weight


def test_a_vanishing_batch_norm_weight_does_no_harm() -> None:
    module = lively(load_network("small_resnet").module)
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.zero_()
    network = converted(module, 16)
    out = network.module.train()(torch.randn(8, 3, 16, 16))
    out.sum().backward()
    gradients = [p.grad for p in network.module.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)


@given(st.integers(2, 8), st.floats(-3, 3), st.floats(0.01, 5))
def test_activation_scales_hold_zero_and_cover_the_range(
    bits: int, middle: float, spread: float
) -> None:
    values = torch.linspace(middle - spread, middle + spread, 101)
    fake_quantizer = ActivationFakeQuantizer(bits, RangeRule())
    out = fake_quantizer(values)
    scale = float(fake_quantizer.scale)
    assert float(fake_quantizer(torch.zeros(1))) == 0
    # Half a step by rounding, half for moving zero onto an integer; signed integers lack one step.
    assert float((out - values).abs().max()) <= scale * 1.01
    assert fake_quantizer.low <= int(fake_quantizer.zero_point) <= fake_quantizer.high


def test_ranges_move_as_the_momentum_says() -> None:
    first, second = torch.tensor([-1.0, 3.0]), torch.tensor([-2.0, 1.0])
    moving, widest = (
        ActivationFakeQuantizer(8, RangeRule(act_range_momentum=0.9)),
        ActivationFakeQuantizer(8, RangeRule(act_range_momentum=-1)),
    )
    for fake_quantizer in (moving, widest):
        fake_quantizer.observe(first)
        fake_quantizer.observe(second)
    assert float(moving.minimum) == pytest.approx(-1.1)
    assert float(moving.maximum) == pytest.approx(2.8)
    assert (float(widest.minimum), float(widest.maximum)) == (-2, 3)


def test_weight_scales_follow_the_formula() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 4, 3, 3)
    for bits in (2, 3, 8):
        fake_quantizer = WeightFakeQuantizer(bits, RangeRule())
        out = fake_quantizer(weight, fake_quantizer.compute_params(weight))
        for channel, rounded in zip(weight.double(), out, strict=True):
            scale = channel.abs().max() / (2 ** (bits - 1) - 1)
            expected = torch.round(channel / scale) * scale
            torch.testing.assert_close(rounded.double(), expected, rtol=1e-5, atol=1e-6)
    one = WeightFakeQuantizer(4, RangeRule(per_channel=False)).compute_params(weight)
    assert one.scale.dim() == 0
    assert float(one.scale) == pytest.approx(float(weight.abs().max()) / 7)
    clipped = WeightFakeQuantizer(4, RangeRule(weight_percentile=90)).compute_params(weight)
    assert (clipped.scale < WeightFakeQuantizer(4, RangeRule()).compute_params(weight).scale).all()


def test_weights_get_straight_through_gradients() -> None:
    weight = torch.randn(3, 8, requires_grad=True)
    factors = torch.randn(3, 8)
    fake_quantizer = WeightFakeQuantizer(4, RangeRule())
    params = fake_quantizer.compute_params(weight)
    (fake_quantizer(weight, params) * factors).sum().backward()
    torch.testing.assert_close(weight.grad, factors)


def test_what_has_no_integer_form_is_named_and_trains_in_float() -> None:
    class Running(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).cumsum(1)).mean((2, 3))

    network = calibrated(converted(Running().eval(), 8, 8, 8), torch.randn(4, 3, 8, 8))
    assert list(network.float_operations.values()) == ["cumsum"]
    with torch.no_grad():
        assert network.module(torch.randn(2, 3, 8, 8)).isfinite().all()
    with pytest.raises(OmpqError, match="cumsum"):
        export_integers(network)


def test_a_shared_layer_reads_one_scale() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(self.conv(x).relu()).relu().mean((2, 3)))

    images = torch.randn(4, 3, 8, 8)
    network = calibrated(converted(Twice().eval(), 8), images)
    with torch.no_grad():
        simulated = network.module(images)
    assert torch.equal(
        IntegerExecution(network, export_integers(network)).logits(images), simulated
    )


@pytest.mark.parametrize(
    ("changes", "words"), [({"bias_bits": 0}, "`bias_bits` is 0"), ({"dyadic": False}, "`dyadic`")]
)
def test_settings_without_integer_form_evaluate_and_say_so(changes: dict, words: str) -> None:
    images = torch.randn(4, 3, 16, 16)
    module = lively(load_network("small_resnet").module)
    plain = calibrated(converted(module, 16), images)
    network = calibrated(converted(module, 16, **changes), images)
    with torch.no_grad():
        torch.testing.assert_close(
            network.module(images), plain.module(images), rtol=0.05, atol=0.05
        )
    with pytest.raises(OmpqError, match=words):
        export_integers(network)


@pytest.mark.parametrize("name", ["small_resnet", "mobilenet_v2"])
def test_the_file_gives_the_same_logits_to_the_bit(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = load_network(name, num_classes=5)
    lively(source.module)
    network = calibrated(converted(source.module), torch.randn(8, 3, 32, 32))
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = network.module(images)
    widths = uniform(trace(source.module, (3, 32, 32)).groups, 4)
    artifact.save_quantized(
        tmp_path / artifact.FILE, network, widths, source=source, preprocess=source.preprocess
    )
    read = artifact.load_quantized(tmp_path)
    assert isinstance(read.network, IntegerNetwork)
    with torch.no_grad():
        assert torch.equal(read.network.module(images), expected)
    assert torch.equal(IntegerExecution(read.network, read.integers).logits(images), expected)
    assert math.isfinite(float(expected.sum()))


@pytest.mark.parametrize("learned", [False, True])
def test_gains_of_either_sign_and_none_are_trained_as_they_are_deployed(learned: bool) -> None:
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    module = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        for norm in (module[1], module[4]):
            norm.weight.copy_(torch.linspace(-1, 1, 8))
            norm.weight[3] = 0
            norm.bias.normal_()
            norm.running_var.uniform_(0.3, 2)
    images = torch.randn(32, 3, 12, 12)
    graph = trace(module, (3, 12, 12))
    widths = uniform(graph.groups, 3, 8)
    settings = ConversionSettings(learned=learned)
    network = convert_to_integers(graph, widths.layer_bits(), widths.layer_act_bits(), settings)
    calibrate(network, [images], torch.device("cpu"))
    if learned:
        start_learning_steps(network, per_channel=True)
    network.freeze_norms()
    with torch.no_grad():
        for requantizer in network.requantizers().values():
            requantizer.fake_quantizer.observing = False
        trained = network.module.train()(images)
        deployed = network.module.eval()(images)
    torch.testing.assert_close(trained, deployed.to(trained.dtype), rtol=1e-4, atol=1e-5)
    # A channel that vanishes is its bias, to far more than the step of three bits.
    layer = next(layer for layer in network.layers().values() if layer.norm is not None)
    integers = layer.compute_integers()
    assert integers.bias is not None and not integers.weight[3].any()
    bias = float(integers.bias[3] * integers.scale[3])
    assert bias == pytest.approx(float(layer.norm.bias.detach()[3]), rel=1e-5)
