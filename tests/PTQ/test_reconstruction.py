"""Reconstruction in the library: better than rounding, repeatable, spilled, dropped, weighted."""

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
from ompq.data import calibration_images, preprocess_for
from ompq.errors import OmpqError
from ompq.graph import NetworkGraph, run_with_taps, trace
from ompq.integer import IntegerNetwork
from ompq.preprocess import Preprocess
from ompq.quantized import QuantizedNetwork
from ompq.quantizers import enabled
from ompq.zoo import load_network
from PTQ.activation_cache import ActivationCache
from PTQ.block_result import BlockReport
from PTQ.examples import compute_loss
from PTQ.quantize import quantize_network, round_to_nearest
from PTQ.resume import FinishedBlocks
from PTQ.settings import Settings

CPU = torch.device("cpu")
QUICK = Settings(
    weight_iterations=60, act_iterations=20, batch_size=16, updates_per_step=1, varied_copies=0
)


def small(name: str = "small_resnet", size: int = 16) -> NetworkGraph:
    torch.manual_seed(0)
    return trace(lively(load_network(name).module), (3, size, size))


def images(count: int = 48, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def run(
    graph: NetworkGraph, settings: Settings, folder: Path, width: int = 3, **cache: str
) -> tuple[QuantizedNetwork, list[BlockReport]]:
    size = graph.input_shape[-1]
    return quantize_network(
        graph,
        uniform(graph.groups, width),
        images(size=size),
        settings,
        cache=ActivationCache(cache.get("place", "auto"), CPU, folder / "cache"),
        finished=FinishedBlocks(folder / "state", {}, resume=True),
    )


def distance(one: nn.Module, other: nn.Module, size: int = 16) -> float:
    with torch.no_grad():
        inputs = images(size=size)
        return float((one(inputs) - other(inputs)).square().mean())


@pytest.mark.parametrize("granularity", ["block", "layer"])
def test_it_is_closer_to_float_than_rounding(granularity: str, tmp_path: Path) -> None:
    graph = small()
    settings = replace(QUICK, granularity=granularity)
    network, reports = run(graph, settings, tmp_path)
    nearest = round_to_nearest(graph, uniform(graph.groups, 3), settings)
    with enabled(network.module, False):
        assert distance(network.module, graph.module) < distance(nearest.module, graph.module)
    assert distance(network.module, graph.module) < distance(nearest.module, graph.module)
    assert {layer for report in reports for layer in report.layers} == set(graph.layers)
    for report in reports:
        assert report.loss_after <= report.loss_before
        if report.act_loss_before is not None:
            assert report.act_loss_after <= report.act_loss_before
    assert any(report.kept == "reconstruction" for report in reports)


def test_every_layer_keeps_or_raises_its_signal_to_noise(trained: Path) -> None:
    network = load_network("small_resnet", path=trained)
    preprocess = preprocess_for("digits", network.preprocess)
    calibration = calibration_images("digits", None, preprocess, 256).images
    graph = trace(network.module, (3, *calibration.shape[2:]))
    widths = uniform(graph.groups, 2)
    reconstructed, _ = quantize_network(
        graph,
        widths,
        calibration,
        replace(QUICK, act_quant=False, weight_iterations=150),
    )

    def features(view: NetworkGraph) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        names = {group.tap: group.name for group in view.groups}
        run_with_taps(view, calibration, list(names), lambda t, v: found.update({names[t]: v + 0}))
        return found

    target = features(graph)
    before = features(round_to_nearest(graph, widths, QUICK).graph)
    after = features(reconstructed.graph)
    for name, wanted in target.items():
        noise_before = (before[name] - wanted).square().sum()
        assert (after[name] - wanted).square().sum() <= noise_before, name


@given(steps=st.integers(1, 30000), batch=st.integers(1, 64), parts=st.none() | st.integers(1, 100))
def test_updates_see_the_images_of_their_steps(steps: int, batch: int, parts: int | None) -> None:
    parts = parts and min(parts, batch)
    settings = Settings(batch_size=batch, updates_per_step=parts)
    updates, each = settings.plan_updates(steps)
    assert steps * batch <= updates * each < steps * batch + updates
    assert steps <= updates and 1 <= each <= batch
    if parts is None and steps >= 500:
        assert (updates, each) == (steps, batch)


def test_few_steps_learn_more_in_parts(tmp_path: Path) -> None:
    few = replace(QUICK, weight_iterations=25, act_iterations=0, correct_biases=False)
    whole, parted = (
        run(small(), replace(few, updates_per_step=parts), tmp_path / str(parts))[1]
        for parts in (1, 4)
    )
    pairs = zip(parted, whole, strict=True)
    assert sum(new.loss_after < old.loss_after for new, old in pairs) > 3


@pytest.mark.parametrize("name", ["mobilenet_v2", "timm:convnext_atto"])
def test_other_networks_need_no_code_of_their_own(name: str, tmp_path: Path) -> None:
    graph = small(name, 32)
    settings = replace(QUICK, weight_iterations=4, act_iterations=2)
    network, reports = run(graph, settings, tmp_path)
    assert set(network.weights) == set(graph.layers)
    assert all(math.isfinite(report.loss_after) for report in reports)


def test_the_same_seed_gives_the_same_integers(tmp_path: Path) -> None:
    graph = small()
    one, _ = run(graph, QUICK, tmp_path / "one")
    two, _ = run(graph, QUICK, tmp_path / "two", place="disk")
    other, _ = run(graph, replace(QUICK, seed=7), tmp_path / "other")
    for layer, weight in one.weights.items():
        assert torch.equal(weight.integers, two.weights[layer].integers)
    assert any(
        not torch.equal(weight.integers, other.weights[layer].integers)
        for layer, weight in one.weights.items()
    )
    assert not list((tmp_path / "two" / "cache").iterdir())


def test_finished_blocks_are_not_learned_again(tmp_path: Path) -> None:
    graph = small()
    first, reports = run(graph, QUICK, tmp_path)
    for file in sorted((tmp_path / "state").glob("part-*"))[3:]:
        file.unlink()
    again, repeated = run(graph, QUICK, tmp_path)
    assert [r.loss_after for r in repeated] == [r.loss_after for r in reports]
    assert [r.seconds for r in repeated][:3] == [r.seconds for r in reports][:3]
    for layer, weight in first.weights.items():
        assert torch.equal(weight.integers, again.weights[layer].integers)
    assert distance(first.module, again.module) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"loss": "fisher_diag"},
        {"drop_probability": 0.5},
        {"symmetric": True},
        {"varied_copies": 2},
    ],
    ids=["fisher", "qdrop", "symmetric", "copies"],
)
def test_every_choice_changes_the_result_and_beats_rounding(change: dict, tmp_path: Path) -> None:
    graph = small()
    plain, _ = run(graph, QUICK, tmp_path / "plain")
    network, _ = run(graph, replace(QUICK, **change), tmp_path / "changed")
    nearest = round_to_nearest(graph, uniform(graph.groups, 3), replace(QUICK, **change))
    assert distance(network.module, graph.module) < distance(nearest.module, graph.module)
    assert distance(network.module, plain.module) > 0


def test_one_scale_per_layer_is_coarser(tmp_path: Path) -> None:
    graph = small()
    one = replace(QUICK, per_channel=False)
    network, _ = run(graph, one, tmp_path)
    assert all(weight.params.scale.dim() == 0 for weight in network.weights.values())
    coarse, fine = (
        round_to_nearest(graph, uniform(graph.groups, 3), choice) for choice in (one, QUICK)
    )
    assert distance(coarse.module, graph.module) > distance(fine.module, graph.module)


def test_a_loss_that_is_not_finite_falls_back_to_rounding() -> None:
    graph = small()
    said: list[str] = []
    settings = replace(QUICK, act_quant=False)
    network, reports = quantize_network(
        graph,
        uniform(graph.groups, 3),
        images() * 1e30,  # squares of it are beyond float32
        settings,
        say=said.append,
    )
    nearest = round_to_nearest(graph, uniform(graph.groups, 3), settings)
    assert distance(network.module, nearest.module) == 0
    assert len(said) == len(reports) + 1
    assert all("kept rounding (the loss was not finite)" in line for line in said[1:])


@pytest.mark.parametrize(
    "name", ["small_resnet", "timm:tf_efficientnet_lite0", "timm:convnext_atto"]
)
def test_the_file_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = load_network(name)
    lively(source.module)
    graph = trace(source.module, (3, 32, 32))
    settings = replace(QUICK, weight_iterations=2, act_iterations=2)
    network, _ = run(graph, settings, tmp_path, width=4)
    artifact.save_quantized(
        tmp_path / "q.safetensors",
        network,
        uniform(graph.groups, 4),
        source=source,
        preprocess=Preprocess(32, 32),
    )
    read = artifact.load_quantized(tmp_path / "q.safetensors")
    assert isinstance(read.network, IntegerNetwork)
    with torch.no_grad():
        expected = network.deployed.module(images(size=32))
        assert torch.equal(read.network.module(images(size=32)), expected)
    for name, layer in read.network.layers().items():
        weight = network.weights[name]
        assert torch.equal(layer.quantize_weight()[0], weight.integers.int())
        assert layer.fake_quantizer.bits == weight.bits
    assert read.preprocess == Preprocess(32, 32)


class Twice(nn.Module):
    """One layer, called in two blocks that a residual add keeps apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.shared(x).relu()
        x = x + self.shared(x).relu()
        return self.head(x.mean((2, 3)))


def test_a_layer_called_in_two_blocks_keeps_what_the_first_decided(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = trace(Twice(), (3, 16, 16))
    settings = replace(QUICK, granularity="layer")
    network, reports = run(graph, settings, tmp_path)
    first, *later = [report for report in reports if "shared" in report.layers]
    assert first.iterations == settings.weight_iterations
    assert later
    assert all(report.iterations == 0 for report in later)
    assert all("kept an earlier block's" in report.format_line() for report in later)
    state = FinishedBlocks(tmp_path / "state", {}, resume=True)
    number = reports.index(first)
    kept = state.load(number)
    assert kept is not None
    assert torch.equal(network.weights["shared"].integers.int(), kept.integers["shared"].int())
    again, _ = run(graph, settings, tmp_path)
    assert distance(network.module, again.module) == 0


def test_a_block_whose_loss_was_not_finite_is_remembered() -> None:
    report = BlockReport("p", ("a",), 3, math.nan, math.nan, "rounding", 0, None, None, "", 1.0)
    again = BlockReport.from_json(report.to_json())
    assert math.isnan(again.loss_before)
    assert again.format_line() == report.format_line()


def test_what_is_no_quantized_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "quantized.safetensors").write_bytes(b"nonsense")
    with pytest.raises(OmpqError, match="damaged"):
        artifact.load_quantized(tmp_path)
    with pytest.raises(OmpqError, match="does not exist"):
        artifact.load_quantized(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("bad", "message"),
    [(torch.randn(1, 3, 16, 16), "needs 2"), (torch.full((4, 3, 16, 16), math.nan), "NaN")],
)
def test_bad_images_are_refused(bad: Tensor, message: str) -> None:
    graph = small()
    with pytest.raises(OmpqError, match=message):
        quantize_network(graph, uniform(graph.groups, 3), bad, QUICK)


def test_a_plain_network_is_traced_at_the_size_of_the_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = small()
    torch.manual_seed(0)
    module = lively(load_network("small_resnet").module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    network, reports = quantize_network(module, uniform(graph.groups, 3), images(), QUICK)
    expected, _ = run(graph, QUICK, tmp_path)
    assert network.input_shape == (3, 16, 16)
    assert distance(network.module, expected.module) == 0
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    lines = capsys.readouterr().out.splitlines()
    assert lines[1 : len(reports) + 1] == [
        f"{number:>3}/{len(reports)} {report.format_line()}"
        for number, report in enumerate(reports, 1)
    ]


def test_images_without_channels_are_refused_for_a_plain_network() -> None:
    graph = small()
    with pytest.raises(OmpqError, match="`images` is 4×16×16"):
        quantize_network(
            load_network("small_resnet").module, uniform(graph.groups, 3), torch.randn(4, 16, 16)
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup": 1.5}, "between 0 and 1"),
        ({"weight_iterations": -1}, "`weight_iterations` is -1"),
        ({"act_lr": 0.0}, "`act_lr`"),
        ({"act_quant": False, "drop_probability": 0.5}, "`act_quant`"),
        ({"loss": "mae"}, "choose one of"),
        ({"updates_per_step": 33}, "`updates_per_step` is 33; a step has"),
        ({"varied_copies": 2, "vary_images": False}, "leave `vary_images` on"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict, message: str) -> None:
    with pytest.raises(OmpqError, match=message):
        replace(QUICK, **change)


def test_the_loss_is_the_formula() -> None:
    output, target, weight = torch.randn(3, 4, 5, 4, 5).unbind(0)
    difference = (output.double() - target.double()).abs()
    for power, importance in ((2.0, None), (2.4, None), (2.0, weight.abs())):
        terms = difference**power * (1 if importance is None else importance.double())
        expected = terms.sum(dim=1).mean()
        found = compute_loss([output], [target], [importance], power)
        assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_a_full_disk_is_said_in_words(tmp_path: Path) -> None:
    cache = ActivationCache("disk", CPU, tmp_path)
    with pytest.raises(OmpqError, match="no room"):
        cache.allocate((2**40, 2**10))
    room = cache.allocate((5, 3))
    room.fill_(2.0)
    assert float(room.sum()) == 30
