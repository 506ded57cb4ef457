"""Files written before names changed are read: one of each kind, of a network of 2000 weights.

`tests/earlier` holds them with the network and its float weights; paths in them are relative to
that folder.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from support import ROOT

from mixed_bit import model_cost
from ompq.artifact import FILE, load_quantized, write_artifact
from ompq.assignment import load
from ompq.errors import OmpqError
from ompq.files import load_tensors
from PTQ import main_imagenet
from QAT import quant_train

EARLIER = ROOT / "tests" / "earlier"
NETWORK = ["tiny.py:make", "--path", "tiny.pth", "--dataset", "digits"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in, for runs that go on there."""
    copied = Path(shutil.copytree(EARLIER, tmp_path / "earlier"))
    monkeypatch.chdir(copied)
    return copied


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]):
    """What a script prints, without a process of its own."""

    def run(script, *options: object) -> str:
        script.run(script.build_parser().parse_args(list(map(str, options))))
        return capsys.readouterr().out

    return run


def recorded(stage: str) -> dict:
    return json.loads((EARLIER / stage / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["bit_config.json", "searched.json"])
def test_bit_configurations(name: str, call, folder: Path) -> None:
    config = load(folder / "bits" / name)
    out = call(
        model_cost, "--model", "tiny.py:make", "--quant_type", "PTQ", "--bit_cfg", f"bits/{name}",
        "--input_size", 8, "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert [group["bits"] for group in found["groups"]] == list(config.bits)
    assert found["model_size_mb"] == config.model_size_mb
    assert found["bops_g"] == pytest.approx(config.bops_g)


@pytest.mark.parametrize("stage", ["ptq", "qat"])
def test_quantized_networks(stage: str, folder: Path) -> None:
    read = load_quantized(stage)
    tensors, description = load_tensors(folder / stage / "quantized.safetensors")
    assert read.description["bits"] == description["bits"]
    module = read.network.module
    assert module(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    named = "conv1" if stage == "ptq" else "conv1.layer"
    scale = tensors["conv1.weight_scale"].view(-1, 1, 1, 1)
    zero_point = tensors["conv1.weight_zero_point"].view(-1, 1, 1, 1)
    expected = (tensors["conv1.weight"].int() - zero_point) * scale
    assert torch.equal(module.get_submodule(named).weight.detach(), expected)


@torch.inference_mode()
def test_quantized_networks_give_the_logits_that_they_gave(folder: Path) -> None:
    logits = json.loads((folder / "logits.json").read_text(encoding="utf-8"))
    images = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8) * 37 % 101 / 50 - 1
    found = load_quantized("qat").network.module(images)
    assert torch.equal(found, torch.tensor(logits["qat"], dtype=torch.float64))
    # In float, another processor may round otherwise.
    found = load_quantized("ptq").network.module(images)
    torch.testing.assert_close(found, torch.tensor(logits["ptq"]), rtol=1e-3, atol=0.1)


@pytest.mark.parametrize("stage", ["ptq", "qat"])
def test_quantized_networks_are_written_anew(stage: str, folder: Path) -> None:
    read = load_quantized(stage)
    write_artifact("new.safetensors", read)
    again = load_quantized("new.safetensors")
    images = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(again.network.module(images), read.network.module(images))
    assert bool(again.integers) == bool(read.integers)
    assert Path("new.safetensors").stat().st_size < (folder / stage / FILE).stat().st_size


def test_quantized_networks_evaluate_as_they_did(call, folder: Path) -> None:
    out = call(main_imagenet, "--evaluate", "ptq", "--dataset", "digits")
    found = re.search(r"top-1 ([\d.]+) %", out)
    # In float, another processor may decide otherwise on an image or two of the 359.
    assert found and float(found[1]) == pytest.approx(recorded("ptq")["top1"], abs=0.6)
    out = call(quant_train, "--evaluate", "qat", "--integer_only", "--dataset", "digits")
    assert f"top-1 {recorded('qat')['top1']:.2f} %" in out
    assert "359 of 359 images give the logits of the simulation to the bit" in out


def test_a_finished_fine_tuning_is_resumed(call, folder: Path) -> None:
    call(
        quant_train, "-a", *NETWORK, "--quant_scheme", "uniform4", "--epochs", 1, "--lr", 0.01,
        "--batch_size", 64, "--save_path", "qat", "--resume", "--no-quantize_sums",
        "--no-re_estimate_BN",
    )  # fmt: skip
    again = json.loads((folder / "qat" / "results.json").read_text(encoding="utf-8"))
    assert again["top1"] == recorded("qat")["top1"]
    assert again["history"] == recorded("qat")["history"]


def test_an_unfinished_reconstruction_of_other_values_is_refused(call, folder: Path) -> None:
    with pytest.raises(OmpqError, match="begun by an earlier version"):
        call(
            main_imagenet, "--arch", *NETWORK, "--bit_cfg", "bits/bit_config.json", "--act_quant",
            "--channel_wise", "--n_bits_a", 8, "--iters_w", 400, "--iters_a", 100,
            "--num_samples", 64, "--output_dir", "ptq_unfinished", "--resume",
        )  # fmt: skip
    assert (folder / "ptq_unfinished" / ".ptq_state" / "main" / "part-000.safetensors").is_file()
