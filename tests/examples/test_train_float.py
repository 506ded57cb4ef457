"""Float networks that the example trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import ROOT

from examples.train_float import OPTIMIZERS, build_parser, run
from ompq.errors import OmpqError

TINY = ROOT / "tests" / "earlier" / "tiny.py"
FEW = '''
from torch import nn

def few(num_classes=10):
    """Two classes, whatever is asked."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
'''


def train(*options: object) -> None:
    words = ["--dataset", "digits", "--epochs", "1", "--workers", "0", "--device", "cpu"]
    run(build_parser().parse_args([*words, *map(str, options)]))


def test_weights_are_named_by_the_function_that_builds_the_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("--model", f"{TINY}:make", "--output_dir", tmp_path)
    assert (tmp_path / "make.pth").is_file()
    assert f"written to {tmp_path / 'make.pth'}" in capsys.readouterr().out


def test_the_optimizer_is_chosen(tmp_path: Path) -> None:
    weights = []
    for name in OPTIMIZERS:
        folder = tmp_path / name
        options = "--lr", 0.002, "--optimizer", name, "--output_dir", folder
        train("--model", f"{TINY}:make", *options)
        weights.append(torch.load(folder / "make.pth", weights_only=True))
    assert not torch.equal(weights[0]["fc.weight"], weights[1]["fc.weight"])


def test_a_network_of_fewer_classes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "few.py"
    file.write_text(FEW)
    with pytest.raises(OmpqError, match="tells 2 classes of the 10 of digits"):
        train("--model", f"{file}:few", "--output_dir", tmp_path / "out")
