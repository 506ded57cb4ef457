"""main_imagenet.py as users start it."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import signal
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import start_forked
from rewritten import change_file
from support import ENVIRONMENT, ROOT, lively, run_command

from ompq import artifact
from ompq.assignment import uniform
from ompq.errors import OmpqError
from ompq.files import atomic_path
from ompq.graph import Group, trace
from ompq.zoo import load_network
from PTQ.main_imagenet import build_parser, quantize, run
from PTQ.options import read_settings
from PTQ.pipeline import choose_control
from PTQ.settings import Settings

SCRIPT = "PTQ/main_imagenet.py"
QUICK = ["--iters_w", "20", "--iters_a", "10", "--num_samples", "64", "--workers", "0"]
# What may differ between a run and its repetition.
TIMES = ("seconds", "arguments", "command")


@pytest.fixture
def options(trained: Path, tmp_path: Path) -> list[str]:
    return [
        "--arch", "small_resnet", "--path", str(trained), "--dataset", "digits",
        "--channel_wise", "--act_quant", "--n_bits_w", "3", "--n_bits_a", "8", *QUICK,
        "--output_dir", str(tmp_path / "output"),
    ]  # fmt: skip


def untimed(file: Path) -> dict:
    content = json.loads(file.read_text())
    blocks = [{k: v for k, v in b.items() if k != "seconds"} for b in content["blocks"]]
    del content["tuning"]["seconds"]
    return {k: v for k, v in content.items() if k not in TIMES} | {"blocks": blocks}


def test_it_prints_writes_and_evaluates(script, options: list[str], tmp_path: Path) -> None:
    widths = list(uniform(trace(load_network("small_resnet").module, (3, 8, 8)).groups, 3).widths)
    widths[2] = 2
    mixed = ["--bit_cfg", str(widths), "--test_before_calibration", "--control"]
    made = script(SCRIPT, *options, *mixed)
    assert made.returncode == 0, made.stderr
    lines = made.stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if "top-1" in line)
    assert lines[first].startswith("float: top-1")
    for row in ("rounded to nearest", "weights reconstructed", "fully quantized", "control"):
        assert any(line.startswith(row) for line in lines), row
    result = json.loads((tmp_path / "output" / "results.json").read_text())
    assert result["num_eval"] == 359
    assert result["top1"] >= result["top1_before"] - 1
    assert result["control"]["model_size_mb"] >= result["model_size_mb"]
    assert result["blocks"][1]["iterations"] == 20
    assert not (tmp_path / "output" / ".ptq_state").exists()
    again = script(SCRIPT, "--evaluate", tmp_path / "output", "--dataset", "digits")
    assert f"top-1 {result['top1']:.2f} %" in again.stdout, again.stderr


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_numbers(
    options: list[str], tmp_path: Path
) -> None:
    whole = run_command([sys.executable, str(ROOT / SCRIPT), *options], tmp_path)
    assert whole.returncode == 0, whole.stderr
    expected = untimed(tmp_path / "output" / "results.json")
    shutil.rmtree(tmp_path / "output")
    state = tmp_path / "output" / ".ptq_state" / "main"
    command = [sys.executable, str(ROOT / SCRIPT), *options, "--resume"]
    chosen = random.Random(0)
    for kill in range(3):
        process = start_forked(command, tmp_path, ENVIRONMENT)
        # Wait for another block, then a little longer: in the middle of the next.
        while process.is_alive() and len(list(state.glob("part-*"))) <= kill:
            time.sleep(0.01)
        time.sleep(chosen.random() * 0.5)
        process.kill()
        process.join()
    ended = run_command(command, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert untimed(tmp_path / "output" / "results.json") == expected


def test_an_unfinished_run_is_neither_lost_nor_mixed_up(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PTQ.pipeline.measure_rounded", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        quantize(build_parser().parse_args(options))
    monkeypatch.undo()
    # Before anything is measured, which may take long.
    monkeypatch.setattr("PTQ.main_imagenet.measure_float", lambda *_: 1 / 0)
    with pytest.raises(OmpqError, match="add `resume`"):
        quantize(build_parser().parse_args(options))
    with pytest.raises(OmpqError, match="`cache_device` cuda needs"):
        quantize(build_parser().parse_args([*options, "--cache_device", "cuda", "--device", "cpu"]))
    with pytest.raises(OmpqError, match=r"other settings \(weight_iterations"):
        quantize(build_parser().parse_args([*options, "--resume", "--iters_w", "21"]))
    monkeypatch.undo()
    result = quantize(build_parser().parse_args([*options, "--resume"]))
    assert len(result["blocks"]) == 8


def test_a_network_of_ends_alone_has_no_control() -> None:
    roles = {"conv1": "stem", "fc": "classifier"}
    layers = [Group((n,), tap=n, role=role, params=64, ops=1) for n, role in roles.items()]
    assert choose_control(uniform(layers, 4, 8)) is None


def test_an_earlier_result_is_moved_and_not_lost(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "output"
    kept = []
    for number, width in enumerate(("2", "3", "4")):
        quantize(build_parser().parse_args([*options, "--iters_w", "0", "--n_bits_w", width]))
        said = f"the result that was in {folder}/ is now in {folder}/earlier-{number}/"
        assert (said in capsys.readouterr().out) == (number > 0)
        kept.append((folder / "results.json").read_text())
    for number in (1, 2):
        aside = folder / f"earlier-{number}"
        assert (aside / "results.json").read_text() == kept[number - 1]
        assert artifact.load_quantized(aside).description["layers"]
    assert (folder / "results.json").read_text() == kept[2]


def test_images_without_labels_are_judged_by_agreement(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "resnet18.pth"
    torch.manual_seed(0)
    torch.save(lively(load_network("resnet18").module).state_dict(), file)
    result = quantize(
        build_parser().parse_args(
            ["--arch", "resnet18", "--path", str(file), "--dataset", "images", "--data_path",
             str(photos), "--input_size", "32", "--quant_scheme", "resnet18_4.5", "--act_quant",
             "--channel_wise", "--iters_w", "2", "--iters_a", "2", "--num_samples", "8",
             "--workers", "0", "--output_dir", str(tmp_path)]
        )
    )  # fmt: skip
    assert result["top1"] is None and 0 <= result["agreement"] <= 100
    assert result["model_size_mb"] == pytest.approx(4.4994, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--bit_cfg", "[4, 3]"], "2 entries .* needs 14, one for each of: stem.0"),
        (["--n_bits_w", "9"], "9"),
        (["--bit_cfg", "[9]*18"], "is not a list"),
        (["--quant_scheme", "resnet18_4.5"], "is for resnet18"),
        (["--bit_cfg", "uniform3", "--disable_8bit_head_stem"], "--disable_8bit_head_stem"),
        (["--path", "/nowhere.pth"], "does not exist"),
        (["--dataset", "imagenet"], "needs its folder"),
        (["--cache_device", "cuda", "--device", "cpu"], "--cache_device cuda needs --device cuda"),
        (["--num_samples", "1"], "two images or more"),
        (["--num_samples", "0"], "--num_samples"),
        (["--warmup", "2"], "--warmup is 2"),
        (["--iters_w", "-1"], "--iters_w is -1"),
        (["--drop_prob", "2"], "--drop_prob is 2"),
        (["--p", "0.5"], "--p is 0.5"),
        (["--evaluate", "/nowhere"], "does not exist"),
    ],
)
def test_what_cannot_be_done_says_why(change: list[str], message: str, options: list[str]) -> None:
    arguments = build_parser().parse_args([*options, *change])
    with pytest.raises(OmpqError) as refused:
        run(arguments)
    assert re.search(message, arguments.parser.in_flags(str(refused.value)))


def test_every_setting_is_named_by_its_option() -> None:
    parser = build_parser()
    # The script's --batch_size is that of the evaluation; no option sets that of a step.
    for name in {field.name for field in fields(Settings)} - {"batch_size"}:
        flag = parser.in_flags(f"`{name}`")
        assert flag.startswith("--"), name
        assert flag in parser.format_help()


def test_nan_images_are_named(options: list[str], tmp_path: Path) -> None:
    images = np.zeros((4, 3, 8, 8), np.float32)
    images[2, 0, 0, 0] = math.nan
    np.save(tmp_path / "images.npy", images)
    with pytest.raises(OmpqError, match="NaN"):
        quantize(
            build_parser().parse_args(
                [*options, "--calibration_data", str(tmp_path / "images.npy")]
            )
        )


def test_every_reconstruction_option_reaches_the_settings() -> None:
    plain = read_settings(build_parser().parse_args(["--arch", "x", "--act_quant"]))
    for option, field, value in (
        ("--iters_w", "weight_iterations", 7),
        ("--iters_a", "act_iterations", 7),
        ("--iters_t", "tuning_iterations", 7),
        ("--updates_per_step", "updates_per_step", 2),
        ("--weight", "rounding_weight", 0.5),
        ("--b_start", "b_start", 9.0),
        ("--b_end", "b_end", 3.0),
        ("--warmup", "warmup", 0.5),
        ("--lr", "act_lr", 0.5),
        ("--p", "act_power", 3.0),
        ("--drop_prob", "drop_probability", 0.5),
        ("--seed", "seed", 3),
    ):
        parsed = build_parser().parse_args(["--arch", "x", "--act_quant", option, str(value)])
        changed = read_settings(parsed)
        assert getattr(changed, field) == value != getattr(plain, field)
    for flag, field in (("--sym", "symmetric"), ("--channel_wise", "per_channel")):
        changed = read_settings(build_parser().parse_args(["--arch", "x", "--act_quant", flag]))
        assert getattr(changed, field) is True is not getattr(plain, field)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda tensors, _: tensors.pop("*.weight_scale"), "does not hold"),
        (lambda tensors, _: tensors["*.weight_scale"].fill_(math.nan), "cannot be"),
        (lambda tensors, _: tensors.update({"classifier.weight": torch.zeros(2, 2)}), "not fit"),
    ],
    ids=["missing", "not finite", "wrong shape"],
)
def test_a_file_that_was_damaged_is_refused(harm, words: str, options, tmp_path: Path) -> None:
    quantize(build_parser().parse_args([*options, "--iters_w", "0", "--iters_a", "0"]))
    file = tmp_path / "output" / "quantized.safetensors"
    change_file(file, harm)
    with pytest.raises(OmpqError, match=words):
        artifact.load_quantized(file)


def test_temporaries_of_killed_processes_are_cleared(tmp_path: Path) -> None:
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2])\n"
        "from ompq.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as file:\n"
        "    file.write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    target = tmp_path / "state.json"
    killed = run_command([sys.executable, "-c", code, str(target), str(ROOT)], tmp_path)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with atomic_path(target) as file:
        file.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
