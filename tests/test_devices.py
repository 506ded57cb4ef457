"""What is computed on another device is what the CPU computes, within its noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixed_bit.feature_extract import build_parser as bits_parser
from mixed_bit.feature_extract import extract
from ompq.quantizers import AdaRound, fake_quantize, learned_step_quantize, lp_scale
from ompq.runtime import Ranks, resolve_device, seed_everything
from PTQ.main_imagenet import build_parser as ptq_parser
from PTQ.main_imagenet import quantize
from QAT.options import build_parser as qat_parser
from QAT.quant_train import train

# The CPU beside itself: the same command gives the same figures.
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]
each_device = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture
def network(trained: Path) -> list[str]:
    return ["--path", str(trained), "--dataset", "digits", "--workers", "0"]


@each_device
@pytest.mark.parametrize("shape", [(24, 3, 3, 3), (16, 4000)], ids=["short rows", "long rows"])
def test_the_scale_search_chooses_as_good_a_grid(device: str, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    errors = []
    for place in ("cpu", device):
        values = weight.to(place)
        found = lp_scale(values, 3)
        assert found.scale.device.type == device or place == "cpu"
        error = (fake_quantize(values, found) - values).abs().pow(2.4).flatten(1).sum(1)
        errors.append(error.cpu())
    torch.testing.assert_close(errors[1], errors[0], rtol=1e-4, atol=1e-6)


@each_device
def test_learning_has_the_same_gradients(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = (torch.randn(8, 16, generator=generator) for _ in range(2))
    found = []
    for place in ("cpu", device):
        rounding = AdaRound(weight.to(place), lp_scale(weight.to(place), 3))
        rounding.penalty, rounding.exponent = 0.1, 5.0
        scale = torch.tensor(0.3, device=place, requires_grad=True)
        learned = learned_step_quantize(inputs.to(place), scale, 3, 0, 7)
        (learned @ rounding.weight().T).square().sum().backward()
        found.append([rounding.logit.grad.cpu(), scale.grad.cpu()])
    for other, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(other, expected, rtol=1e-3, atol=1e-3)


@each_device
def test_the_bits_are_the_same(device: str, network: list[str], tmp_path: Path) -> None:
    options = ["--model", "small_resnet", *network, "--quant_type", "PTQ", "--model_size", "0.05"]
    results = []
    for place in ("cpu", device):
        folder = ["--device", place, "--output_dir", str(tmp_path / place)]
        results.append(extract(bits_parser().parse_args([*options, *folder])).config.bits)
    assert results[0] == results[1]


@each_device
def test_reconstruction_agrees(device: str, network: list[str], tmp_path: Path) -> None:
    options = ["--arch", "small_resnet", *network, "--channel_wise", "--act_quant", "--n_bits_w",
               "3", "--n_bits_a", "8", "--iters_w", "40", "--iters_a", "10", "--num_samples",
               "128"]  # fmt: skip
    results = []
    for number, place in enumerate(("cpu", device)):
        folder = ["--device", place, "--output_dir", str(tmp_path / str(number))]
        results.append(quantize(ptq_parser().parse_args([*options, *folder])))
    here, there = results
    assert there["top1"] == pytest.approx(here["top1"], abs=0.6)
    for one, other in zip(here["blocks"], there["blocks"], strict=True):
        assert other["loss_before"] == pytest.approx(one["loss_before"], rel=0.2)
        assert other["loss_after"] == pytest.approx(one["loss_after"], rel=0.3)


@each_device
def test_fine_tuning_agrees(device: str, network: list[str], tmp_path: Path) -> None:
    options = ["-a", "small_resnet", *network, "--data_percentage", "0.1", "--epochs", "1",
               "--batch_size", "48", "--lr", "0.01", "--quant_scheme", "uniform4"]  # fmt: skip
    results = []
    for number, place in enumerate(("cpu", device)):
        folder = ["--device", place, "--save_path", str(tmp_path / str(number))]
        arguments = qat_parser().parse_args([*options, *folder])
        seed_everything(arguments.seed)
        results.append(train(arguments, Ranks(), resolve_device(place)))
    here, there = results
    assert there["top1_before"] == pytest.approx(here["top1_before"], abs=0.6)
    assert there["top1"] == pytest.approx(here["top1"], abs=2)
