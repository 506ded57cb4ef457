"""Recipes run from end to end, on digits."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from support import ROOT

from ompq.errors import OmpqError
from recipes.__main__ import run
from recipes.options import build_parser
from recipes.recipe import Expectation, read_recipe
from recipes.running import Finding, run_recipe

EARLIER = ROOT / "tests" / "earlier"
TWO = ["ompq-bits", "ompq-ptq"]
RECIPE = """
title: A tiny network on digits
network: {arch: tiny.py:make, path: tiny.pth}
data: {dataset: digits, workers: 0}
search:
  quant_type: PTQ
  model_size: 0.0012
  num_images: 16
  bits: {"*": [2, 4], "conv*": [3, 4], fc: 8}
ptq: {act_quant: true, n_bits_a: 8, channel_wise: true, num_samples: 64, iters_w: 20, iters_a: 10}
qat: {epochs: 1, lr: 0.001, batch_size: 64, data_percentage: 0.2}
export: {to: packed}
expect: {top1: 96.0, standard_error: 1.0}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe and what it names, which is the present one."""
    for name in ("tiny.py", "tiny.pth"):
        shutil.copy(EARLIER / name, tmp_path / name)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*words: str) -> None:
    run(build_parser().parse_args(list(words)))


def test_a_recipe_runs_from_search_to_export(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start("tiny.yaml")
    told = capsys.readouterr().out
    commands = re.findall(r"^\$ (ompq-\w+)", told, flags=re.MULTILINE)
    assert commands == ["ompq-bits", "ompq-ptq", "ompq-qat", "ompq-export"]
    output = folder / "recipe_output" / "tiny"
    found = json.loads((output / "search" / "bit_config.json").read_text())
    widths = {group["layers"][0]: group["bits"] for group in found["groups"]}
    assert widths.pop("fc") == 8 and set(widths.values()) <= {3, 4}
    assert found["command"].startswith("ompq-bits --arch tiny.py:make ")
    results = json.loads((output / "qat" / "results.json").read_text())
    assert results["bits"] == json.loads((output / "ptq" / "results.json").read_text())["bits"]
    assert results["command"].startswith("ompq-qat --arch tiny.py:make ")
    assert (output / "export" / "model.ompq.safetensors").is_file()
    last = told.strip().splitlines()[-1]
    assert last.startswith("tiny, ") and last.endswith(
        "expected top-1 96.00 ± 1.00 % (measured): met"
    )
    assert f"{results['top1']:.2f} %" in last


def test_a_figure_that_is_not_met_ends_with_1(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = RECIPE.replace("top1: 96.0", "top1: 99.9").replace("error: 1.0", "error: 0.01")
    text = "\n".join(
        line
        for line in text.splitlines()
        if line[:4] not in ("sear", "  qu", "  mo", "  nu", "  bi", "qat:", "expo")
    )
    (folder / "tiny.yaml").write_text(text.replace("act_quant", "bit_cfg: uniform2, act_quant"))
    with pytest.raises(SystemExit) as ended:
        start("tiny.yaml")
    assert ended.value.code == 1
    assert capsys.readouterr().out.strip().endswith("not met, 99.88 would be")


def test_commands_are_shown_without_being_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start("tiny.yaml", "--show")
    assert capsys.readouterr().out.count("\n") == 4
    start("tiny.yaml", "--show", "--without", "digits")
    assert capsys.readouterr().out == "note: no recipe is left to be run\n"
    assert not (folder / "recipe_output").exists()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"conv*"', '"block*"', "ompq-bits: --bits block*: the network has no such layer"),
        ("path: tiny.pth", "path: gone.pth", "ompq-bits: checkpoint gone.pth does not exist"),
        ("tiny.py:make", "gone.py:make", "gone.py"),
        ("model_size: 0.0012", "model_size: 0.0001", "ompq-bits: --model_size 0.0001 is below"),
    ],
)
def test_what_a_stage_refuses_is_one_line(
    before: str, after: str, message: str, folder: Path
) -> None:
    (folder / "tiny.yaml").write_text(RECIPE.replace(before, after))
    with pytest.raises(OmpqError) as refused:
        run_recipe(read_recipe("tiny.yaml"), say=lambda _: None)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_killed_run_is_gone_on_with(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is done stays; an unfinished reconstruction is told how to go on, and goes on."""
    start("tiny.yaml")
    output = folder / "recipe_output" / "tiny"
    first = json.loads((output / "qat" / "results.json").read_text())
    bits = (output / "search" / "bit_config.json").stat().st_mtime_ns
    (output / "qat" / "results.json").unlink()
    capsys.readouterr()
    start("tiny.yaml", "--resume")
    told = capsys.readouterr().out
    assert re.findall(r"^done before: (ompq-\w+)", told, flags=re.MULTILINE) == TWO
    assert (output / "search" / "bit_config.json").stat().st_mtime_ns == bits
    again = json.loads((output / "qat" / "results.json").read_text())
    assert again["top1"] == first["top1"] and again["history"] == first["history"]
    (folder / "tiny.yaml").write_text(RECIPE.replace("iters_w: 20", "iters_w: 21"))
    start("tiny.yaml", "--resume")
    assert capsys.readouterr().out.count("done before") == 1


def test_of_several_recipes_all_are_tried(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.yaml").write_text(RECIPE.replace("tiny.pth", "gone.pth"))
    quick = "\n".join(line for line in RECIPE.splitlines() if line[:3] not in ("qat", "exp", "ptq"))
    (folder / "quick.yaml").write_text(quick)
    with pytest.raises(OmpqError, match=r"1 of 2 recipes could not be run: broken: ompq-bits"):
        start("broken.yaml", "quick.yaml")
    assert "done; no figure is expected" in capsys.readouterr().out
    other = folder / "other"
    other.mkdir()
    (other / "quick.yaml").write_text(quick)
    (other / "of_imagenet.yaml").write_text(quick.replace("dataset: digits, ", ""))
    for words, message in {
        ("quick.yaml", "other/quick.yaml"): "two recipes are called quick",
        ("quick.yaml", "other/of_imagenet.yaml", "--data", "x"): "of one data set, not of",
    }.items():
        with pytest.raises(OmpqError, match=message):
            start(*words)
    # A folder is asked of no data set that is left out, or has its own.
    two = ("quick.yaml", "other/of_imagenet.yaml", "--show", "--data", "x")
    for more, asked in {
        ("--without", "imagenet"): {"x"},
        ("--data", "imagenet=y/z=1"): {"x", "y/z=1"},
    }.items():
        start(*two, *more)
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert {line[line.index("--data") + 1] for line in lines if "--data" in line} == asked
    with pytest.raises(OmpqError, match="`path` is of one recipe's network"):
        start("broken.yaml", "quick.yaml", "--path", "tiny.pth")


def test_images_without_labels_meet_no_accuracy(folder: Path) -> None:
    recipe = read_recipe("tiny.yaml")
    finding = Finding(recipe, None, 1.0)
    assert not finding.is_met and "no labels" in finding.describe()
    assert Expectation("agreement", 99.0, 0.5).describe().startswith("agreement with the float")


def test_the_networks_of_recipes_take_the_published_names() -> None:
    from recipes.networks.cifar_resnet import resnet20, resnet56

    torch.manual_seed(0)
    network = resnet20().eval()
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    names = set(network.state_dict())
    assert {
        "conv1.weight",
        "layer1.0.bn2.running_var",
        "layer3.2.conv2.weight",
        "linear.bias",
    } <= names
    assert len(names) == 19 + 19 * 5 + 2
    assert len(resnet56().state_dict()) == 55 + 55 * 5 + 2
