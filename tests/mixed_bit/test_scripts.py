"""The scripts as users start them: by path, through launchers, from any folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support import ENVIRONMENT, ROOT, heed_interrupts, lively, run_command

from mixed_bit.feature_extract import build_parser, extract
from ompq.errors import OmpqError
from ompq.zoo import load_network

SCRIPT = "mixed_bit/feature_extract.py"


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the paper's base models come, holding a ResNet-18 that is not fresh."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base_model")
    (folder / "checkpoint").mkdir()
    state = lively(load_network("resnet18").module).state_dict()
    torch.save({"state_dict": state}, folder / "checkpoint" / "model_best.pth.tar")
    return folder


@pytest.fixture
def options(base_model: Path, photos: Path, tmp_path: Path) -> list[str]:
    """The options of the README's first command."""
    return [
        "--model", "resnet18", "--path", str(base_model), "--dataset", "imagenet",
        "--save_path", str(photos), "--beta", "10.0", "--model_size", "6.7",
        "--quant_type", "QAT", "--num_images", "12", "--workers", "0",
        "--output_dir", str(tmp_path / "output"),
    ]  # fmt: skip


def read(folder: Path) -> tuple[dict, np.ndarray]:
    config = json.loads((folder / "bit_config.json").read_text())
    return config, np.load(folder / "orthogonality.npy")


@pytest.mark.slow
def test_every_way_to_start_it_gives_the_same(options: list[str], tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.launch", "--standalone", "--nproc_per_node=1"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    starts = {
        "launch": ([*launch, "feature_extract.py"], ROOT / "mixed_bit"),
        "torchrun": ([*torchrun, SCRIPT], ROOT),
        "module": (["-m", "mixed_bit.feature_extract"], ROOT),
    }
    found = {}
    for name, (start, cwd) in starts.items():
        run = run_command([sys.executable, *start, *options], cwd)
        assert run.returncode == 0, run.stderr
        assert "Bit configuration (QAT): [" in run.stdout
        assert "Quantization model is 6." in run.stdout
        assert run.stdout.count("Quantization model is") == 1
        found[name] = read(tmp_path / "output")
    config, matrix = found["module"]
    assert matrix.shape == (16, 16)
    assert matrix.dtype == np.float64
    assert len(config["bits"]) == 16
    assert config["optimal"] is True
    assert config["model_size_mb"] <= 6.7
    assert set(config["timing"]) == {"forward", "orthogonality", "solve", "total"}
    for other, other_matrix in found.values():
        assert other["bits"] == config["bits"]
        np.testing.assert_allclose(other_matrix, matrix, atol=1e-6)


@pytest.mark.slow
def test_the_run_scripts_work_from_anywhere(base_model: Path, photos: Path, tmp_path: Path) -> None:
    run = run_command(
        ["bash", str(ROOT / "mixed_bit/run_scripts/quant_resnet18.sh"), "--num_images", "4"],
        tmp_path,
        PYTHON=sys.executable,
        OMPQ_BASE_MODEL=str(base_model),
        OMPQ_DATA=str(photos),
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "ompq_output" / "bit_config.json").is_file()
    run = run_command(
        ["bash", str(ROOT / "mixed_bit/run_scripts/quant_resnet50.sh")], tmp_path, PYTHON="false"
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: no base model")


def strip_times(folder: Path) -> str:
    config = json.loads((folder / "bit_config.json").read_text())
    del config["timing"]
    return json.dumps(config)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_file(script, options: list[str], tmp_path: Path) -> None:
    contents = []
    for seed in (1, 1, 2):
        assert script(SCRIPT, *options, "--seed", seed).returncode == 0
        file = tmp_path / "output" / "orthogonality.npy"
        contents.append((strip_times(tmp_path / "output"), file.read_bytes()))
    assert contents[0] == contents[1]
    assert contents[0][1] == contents[2][1] or contents[0] != contents[2]


@pytest.mark.slow
def test_calibration_data_and_minibatches(script, tmp_path: Path) -> None:
    torch.save(torch.randn(12, 3, 16, 16), tmp_path / "images.pt")
    common = ["--model", "small_resnet", "--calibration_data", tmp_path / "images.pt"]
    common += ["--quant_type", "PTQ", "--model_size", "0.06", "--output_dir", tmp_path]
    common += ["--metric", "orm"]
    whole = script(SCRIPT, *common)
    assert "12 images, exact estimator" in whole.stdout
    assert "random weights" in whole.stdout
    parts = script(SCRIPT, *common, "--batch_size", 6, "--num_images", 8)
    assert "note: --num_images without effect: --calibration_data holds" in parts.stdout
    assert "unbiased minibatch estimate over 2 batches (Nguyen et al." in parts.stdout
    assert script(SCRIPT, *common, "--batch_size", 3).returncode == 2


@pytest.mark.slow
def test_errors_are_one_line_and_nothing_is_lost(script, tmp_path: Path) -> None:
    (tmp_path / "bit_config.json").write_text("precious")
    common = ["--model", "small_resnet", "--dataset", "digits", "--output_dir", tmp_path]
    run = script(SCRIPT, *common, "--quant_type", "PTQ", "--model_size", "0.01")
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("error: --model_size 0.01 is below 0.0")
    assert (tmp_path / "bit_config.json").read_text() == "precious"
    run = script(SCRIPT, *common, "--model_sise", "1")
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    blocked = script(SCRIPT, *common[:-1], tmp_path / "bit_config.json", "--model_size", "0.1")
    assert blocked.returncode == 2
    assert "is a file" in blocked.stderr


@pytest.mark.slow
def test_ctrl_c_leaves_what_was_there(tmp_path: Path) -> None:
    """The network of this user tells when it is being built, and takes its time."""
    (tmp_path / "bit_config.json").write_text("precious")
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n"
        "def build():\n"
        f"    pathlib.Path({str(tmp_path / 'started')!r}).touch()\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, str(ROOT / SCRIPT), "--model", f"{tmp_path / 'slow.py'}:build"]
    command += ["--dataset", "digits", "--model_size", "16", "--output_dir", str(tmp_path)]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted\n"
    assert (tmp_path / "bit_config.json").read_text() == "precious"
    names = {file.name for file in tmp_path.iterdir()} - {"__pycache__"}
    assert names == {"bit_config.json", "slow.py", "started"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--path", "/nowhere"], "does not exist"),
        (["--save_path", "/nowhere"], "does not exist"),
        (["--num_images", "1"], "give 2 or more"),
        (["--batch_size", "0"], "--batch_size 0: give 1 or more"),
        (["--pin", "layer9=4"], "no such layer"),
        (["--pin", "layer1"], "is not NAME=BITS"),
        (["--bits", "4,x"], "is not a list such as 4,8"),
        (["--bits", "1,4"], "whole numbers from 2 to 8"),
        (["--model_size", "1"], "--model_size 1 is below "),
        (["--device", "cuda:99"], "cuda:99"),
        (["--num_classes", "3"], "1000"),
        (["--calibration_data", "/nowhere.pt"], "no such file"),
        (["--input_size", "-3"], "whole number above 0"),
        (["--seed", "-1"], "from 0 to"),
        (["--bits", ""], "an empty list"),
        (["--pin", "layer1.0.conv1=4", "--pin", "layer1.0.conv1=8"], "given twice"),
        (["--model_size", "1e308"], "up to 1e9"),
    ],
)
def test_what_cannot_be_done_says_why(change: list[str], message: str, options: list[str]) -> None:
    parser = build_parser()
    with pytest.raises(OmpqError) as refused:
        extract(parser.parse_args([*options, *change]))
    told = parser.in_flags(str(refused.value))
    assert message in told
    assert "`" not in told


def test_nan_weights_stop_with_the_layers_name(
    base_model: Path, options: list[str], tmp_path: Path
) -> None:
    file = base_model / "checkpoint" / "model_best.pth.tar"
    state = torch.load(file, weights_only=True)["state_dict"]
    state["layer3.0.conv1.weight"][0, 0] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(OmpqError, match=r"layer3\.0\.conv1\.weight"):
        extract(build_parser().parse_args([*options, "--path", str(tmp_path / "nan.pth")]))


@pytest.mark.slow
def test_model_cost_prints_json(script) -> None:
    run = script(
        "mixed_bit/model_cost.py", "--model", "resnet18", "--quant_scheme", "modelsize_6.7_a6_75B",
        "--json",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    printed = json.loads(run.stdout)
    assert round(printed["model_size_mb"], 4) == 6.6986
    assert round(printed["bops_g"], 2) == 75.10
    assert len(printed["groups"]) == 18


@pytest.mark.parametrize("name", ["feature_extract.py", "model_cost.py"])
def test_help_is_complete(name: str, script) -> None:
    run = script(f"mixed_bit/{name}", "--help")
    assert run.returncode == 0
    assert "default: None" not in run.stdout
    assert "local" not in run.stdout
