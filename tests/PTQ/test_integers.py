"""What a reconstruction deploys: integers that do what it learned with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kinds import draw_images
from operating import OPERATING
from torch import Tensor

from ompq.assignment import Assignment, uniform
from ompq.data import calibration_images, make_loader
from ompq.graph import trace
from ompq.quantized import QuantizedNetwork
from ompq.verification import verify
from ompq.zoo import Network, load_network
from PTQ import Settings, quantize_network
from PTQ.main_imagenet import run
from PTQ.options import build_parser

FEW = {"weight_iterations": 30, "act_iterations": 20, "varied_copies": 0}


@pytest.fixture(scope="module")
def network(trained: Path) -> Network:
    return load_network("small_resnet", path=trained)


@pytest.fixture(scope="module")
def images(network: Network) -> Tensor:
    return calibration_images("digits", None, network.preprocess, 96, seed=0).images


def choose_widths(network: Network, images: Tensor, bits: int) -> Assignment:
    return uniform(trace(network.module, tuple(images.shape[1:])).groups, bits, 8)


@pytest.fixture(scope="module")
def quantized(network: Network, images: Tensor) -> QuantizedNetwork:
    widths = choose_widths(network, images, 3)
    return quantize_network(network.module, widths, images, Settings(**FEW), say=str)[0]


def test_biases_lie_on_the_grid_of_the_sums(quantized: QuantizedNetwork) -> None:
    checked = 0
    for layer, weight in quantized.weights.items():
        bias, source = quantized.graph.layer_module(layer).bias, quantized.find_source(layer)
        assert bias is not None and source is not None
        whole = bias.double() / (weight.params.scale.double() * source.params.scale.double())
        assert (whole - torch.round(whole)).abs().max() < 1e-2
        checked += 1
    assert checked == len(quantized.weights) > 10


def test_integers_hold_those_very_biases_and_scales(quantized: QuantizedNetwork) -> None:
    assert quantized.integers is not None
    layers = quantized.integers.layers()
    for name, weight in quantized.weights.items():
        held = layers[name].compute_integers()
        bias = quantized.graph.layer_module(name).bias
        assert bias is not None and held.bias is not None
        assert torch.allclose((held.bias * held.scale.flatten()).float(), bias)
        zero_point = weight.params.zero_point.view(-1, *[1] * (weight.integers.dim() - 1))
        assert torch.equal(held.weight, (weight.integers.int() - zero_point).long())


def test_the_integers_tell_what_was_simulated(
    network: Network, quantized: QuantizedNetwork
) -> None:
    loader = make_loader("digits", None, "val", network.preprocess, 128)
    found = verify(quantized, loader)
    assert found.equal == found.accuracy.count == 359
    assert quantized.integers is not None and quantized.integers.runs_on_integers
    test = torch.cat([batch for batch, _ in loader])
    with torch.inference_mode():
        simulated = quantized.module(test).argmax(dim=1)
        told = quantized.integers.module(test).argmax(dim=1)
    assert (simulated == told).double().mean() >= 0.99


def test_only_8_bits_are_symmetric_unless_all_or_none_are_to_be(
    network: Network, images: Tensor
) -> None:
    widths = choose_widths(network, images, 4)
    bits = widths.layer_bits()
    for symmetric in (None, True, False):
        settings = Settings(weight_iterations=0, act_quant=False, symmetric=symmetric)
        made, _ = quantize_network(network.module, widths, images[:8], settings, say=str)
        plain = {name: bool((w.params.zero_point == 0).all()) for name, w in made.weights.items()}
        expected = {
            name: width == 8 if symmetric is None else symmetric for name, width in bits.items()
        }
        assert plain == expected


@pytest.mark.parametrize("name", ["attention", "norm written out", "gelu written out"])
def test_operations_between_layers_read_what_their_integers_read(name: str) -> None:
    torch.manual_seed(0)
    graph = trace(OPERATING[name](), (3, 16, 16))
    images = draw_images(32)
    settings = Settings(**FEW, per_channel=True)
    quantized, _ = quantize_network(graph, uniform(graph.groups, 4, 4), images, settings)
    assert quantized.integers is not None
    assert quantized.integers.runs_on_integers
    widths = {site.path: site.bits for site in quantized.integers.sites}
    assert {path: q.bits for path, q in quantized.activations().items()} == widths
    with torch.inference_mode():
        simulated, found = quantized.module(images), quantized.integers.module(images)
    assert float((found - simulated).norm() / simulated.norm()) < 0.05


def test_sums_read_8_bits_where_that_is_asked(network: Network, images: Tensor) -> None:
    widths = choose_widths(network, images, 4)
    for asked in (True, False):
        settings = Settings(weight_iterations=0, act_iterations=0, quantize_sums=asked)
        made, _ = quantize_network(network.module, widths, images[:16], settings, say=str)
        shared = [path for path in made.activations() if path.startswith("values.")]
        assert bool(shared) is asked
        assert made.integers is not None
        # Where the simulation quantizes, the integers do.
        small = {
            path: int(requantizer.fake_quantizer.bits)
            for path, requantizer in made.integers.requantizers().items()
            if requantizer.fake_quantizer.bits <= 8
        }
        assert small == {path: q.bits for path, q in made.activations().items()}


def test_the_script_ends_with_the_integers_and_runs_them_again(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--arch", "small_resnet", "--path", str(trained), "--dataset", "digits", "--n_bits_w", "3",
        "--n_bits_a", "8", "--act_quant", "--channel_wise", "--iters_w", "5", "--iters_a", "5",
        "--num_samples", "32", "--workers", "0", "--output_dir", str(tmp_path / "out"),
    ]  # fmt: skip
    run(build_parser().parse_args(options))
    told = capsys.readouterr().out
    (row,) = [line for line in told.splitlines() if line.startswith("integers ")]
    # The run tells which images it was judged on.
    run(build_parser().parse_args(
        ["--evaluate", str(tmp_path / "out"), "--integer_only", "--workers", "0"]
    ))  # fmt: skip
    again = capsys.readouterr().out
    assert "359 of 359 images give the logits of the simulation to the bit" in again
    top1 = row.split()[3]
    assert f"top-1 {top1} %" in again or f"{top1}" in again
