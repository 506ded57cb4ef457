"""Scales and biases tuned together: nearer to the float network, and never worse."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kinds import build_kind, draw_images
from torch import Tensor, nn

from ompq.assignment import uniform
from ompq.data import calibration_images, preprocess_for
from ompq.graph import fold_batch_norm, trace
from ompq.quantized import QuantizedNetwork
from ompq.zoo import load_network
from PTQ import Settings, quantize_network
from PTQ.tuning import TuningReport, measure_divergence, tune_steps
from PTQ.variation import vary_images

UNTUNED = Settings(
    weight_iterations=20,
    act_iterations=10,
    tuning_iterations=0,
    vary_images=False,
    batch_size=16,
    updates_per_step=1,
)
STEPS = Settings(tuning_iterations=40, batch_size=16)


class Case:
    """A network that was reconstructed without tuning, and its teacher."""

    def __init__(self, network: nn.Module, images: Tensor, width: int, act_bits: int) -> None:
        self.images = images
        graph = trace(network, tuple(images.shape[1:]))
        widths = uniform(graph.groups, width, act_bits)
        self.quantized, _ = quantize_network(graph, widths, images, UNTUNED, say=lambda _: None)
        self.teacher = fold_batch_norm(graph).module

    def state(self) -> dict[str, Tensor]:
        held = self.quantized.module.state_dict()
        return {name: value.clone() for name, value in held.items()}


@pytest.fixture(scope="module")
def untuned(trained: Path) -> Case:
    torch.manual_seed(0)
    network = load_network("small_resnet", path=trained)
    preprocess = preprocess_for("digits", network.preprocess)
    images = calibration_images("digits", None, preprocess, 256).images
    return Case(network.module, images, 2, 3)


@pytest.fixture
def digits(untuned: Case) -> Case:
    """A case of its own, for what tunes it in place."""
    case = copy.copy(untuned)
    case.quantized = untuned.quantized.copy()
    for quantizer, own in zip(
        case.quantized.activations().values(),
        untuned.quantized.activations().values(),
        strict=True,
    ):
        quantizer.enabled = own.enabled
    return case


def integers_of(network: QuantizedNetwork) -> dict[str, Tensor]:
    return {name: weight.integers for name, weight in network.weights.items()}


def test_it_brings_the_logits_nearer_and_keeps_the_integers(digits: Case) -> None:
    network = digits.quantized
    integers, before = integers_of(network), digits.state()
    far = measure_divergence(network.module, digits.teacher, digits.images)
    torch.manual_seed(0)
    report = tune_steps(network, digits.teacher, digits.images, STEPS)
    assert report.kept == "tuned" and report.iterations == 40
    assert report.before is not None and report.after is not None
    assert report.after < 0.95 * report.before
    near = measure_divergence(network.module, digits.teacher, digits.images)
    assert near < 0.95 * far
    for name, found in integers_of(network).items():
        assert torch.equal(found, integers[name])
        layer, weight = network.graph.layer_module(name), network.weights[name]
        assert torch.equal(layer.weight, weight.values())
        source = network.find_source(name)
        assert layer.bias is not None and source is not None
        sums = layer.bias.double() / (weight.params.scale.double() * source.params.scale.double())
        assert torch.allclose(sums, sums.round(), atol=1e-2)
    changed = [name for name, value in digits.state().items() if not value.equal(before[name])]
    assert any(name.endswith("scale") for name in changed)
    assert not any(p.requires_grad for p in network.module.parameters())


class Lost(nn.Module):
    """A teacher whose logits are not finite, or those of the network itself."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) * self.factor


@pytest.mark.parametrize("factor", [math.nan, 1.0])
def test_without_a_gain_everything_stays_to_the_bit(factor: float, digits: Case) -> None:
    network, before = digits.quantized, digits.state()
    teacher = Lost(network.copy().module, factor)
    for quantizer, own in zip(
        QuantizedNetwork(network.graph.with_module(teacher.network)).activations().values(),
        network.activations().values(),
        strict=True,
    ):
        quantizer.enabled = own.enabled
    report = tune_steps(network, teacher, digits.images, STEPS)
    assert report.kept.startswith("as reconstructed")
    after = digits.state()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_layers_that_share_a_weight_share_its_scale() -> None:
    case = Case(build_kind("tied weights"), draw_images(256), 3, 4)
    report = tune_steps(case.quantized, case.teacher, case.images, STEPS)
    assert report.before is not None and report.after is not None
    assert report.after <= report.before
    weights = case.quantized.weights
    assert torch.equal(weights["a"].params.scale, weights["b"].params.scale)
    assert torch.equal(weights["a"].integers, weights["b"].integers)


@pytest.mark.parametrize(("count", "varied"), [(63, True), (255, False)])
def test_too_few_images_are_left_alone(count: int, varied: bool, digits: Case) -> None:
    before = digits.state()
    steps = replace(STEPS, vary_images=varied)
    report = tune_steps(digits.quantized, digits.teacher, digits.images[:count], steps)
    assert "too few images" in report.format_line()
    assert all(torch.equal(digits.state()[name], value) for name, value in before.items())


def test_a_seed_gives_the_same_network(digits: Case) -> None:
    other = Case.__new__(Case)
    other.quantized = digits.quantized.copy()
    for quantizer in other.quantized.activations().values():
        quantizer.enabled = True
    for network in (digits.quantized, other.quantized):
        torch.manual_seed(3)
        tune_steps(network, digits.teacher, digits.images, STEPS)
    one, two = digits.state(), other.state()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("given", "batch", "seen"), [(256, 16, 16), (256, 12, 16), (256, 4, 8)])
def test_where_there_are_many_images_a_step_takes_more(
    digits: Case, given: int, batch: int, seen: int
) -> None:
    """A sixteenth of them, between one and two batches of the blocks."""
    counts = []
    handle = digits.teacher.register_forward_pre_hook(lambda _, taken: counts.append(len(taken[0])))
    steps = replace(STEPS, tuning_iterations=3, batch_size=batch)
    tune_steps(digits.quantized, digits.teacher, digits.images[:given], steps)
    handle.remove()
    judged = math.ceil(given / 128)
    assert counts[judged:-judged] == [seen] * 3


class Head(nn.Module):
    """A small network with an output of any kind."""

    def __init__(self, outputs: int, *, is_map: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, outputs, 1)
        self.is_map = is_map

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu())
        return x if self.is_map else x.mean((2, 3))


def test_one_output_is_left_alone() -> None:
    torch.manual_seed(0)
    case = Case(Head(1).eval(), draw_images(256), 3, 4)
    before = case.state()
    report = tune_steps(case.quantized, case.teacher, case.images, STEPS)
    assert "the outputs are no classes" in report.format_line()
    assert all(torch.equal(case.state()[name], value) for name, value in before.items())


def test_classes_of_every_position_are_tuned() -> None:
    torch.manual_seed(0)
    case = Case(Head(5, is_map=True).eval(), draw_images(256), 3, 4)
    before = measure_divergence(case.quantized.module, case.teacher, case.images)
    with torch.inference_mode():
        shares = [
            (network(case.images).double() / 4).log_softmax(1)
            for network in (case.teacher, case.quantized.module)
        ]
    expected = 16 * float((shares[0].exp() * (shares[0] - shares[1])).sum(1).mean())
    assert before == pytest.approx(expected, rel=1e-6)
    report = tune_steps(case.quantized, case.teacher, case.images, STEPS)
    assert report.kept == "tuned"
    assert measure_divergence(case.quantized.module, case.teacher, case.images) < before


@pytest.mark.parametrize("seed", range(3))
def test_outputs_that_are_no_classes_do_not_get_worse(seed: int) -> None:
    """A divergence does not see what moves all outputs alike; the error does."""
    torch.manual_seed(seed)
    case = Case(Head(2).eval(), draw_images(256), 2, 4)
    images = vary_images(case.images, torch.Generator().manual_seed(9))

    def measure() -> float:
        with torch.inference_mode():
            wanted = case.teacher(images)
            return float((case.quantized.module(images) - wanted).square().mean())

    before = measure()
    tune_steps(case.quantized, case.teacher, case.images, replace(STEPS, tuning_iterations=100))
    # The images are others than those that tuning is judged by.
    assert measure() <= 1.2 * before


def test_layers_that_share_a_bias_share_it_after() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    network.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)))
    network[2].bias = network[0].bias
    case = Case(network.eval(), draw_images(256), 3, 4)
    report = tune_steps(case.quantized, case.teacher, case.images, STEPS)
    assert report.before is not None and report.after is not None
    assert report.after <= report.before


def test_a_divergence_that_is_not_finite_becomes_null() -> None:
    report = TuningReport(3, math.nan, math.nan, "as reconstructed", 1.0)
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["before"] is None
