"""The images of quant_train.py are the user's: their classes, channels, sizes and values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ompq import artifact
from ompq.errors import OmpqError
from QAT.quant_train import build_parser, run

FACTORY = """
import torch
from torch import nn
def make(num_classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, num_classes))
"""


def fill(folder: Path, classes: str, count: int) -> None:
    noise = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = noise.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def start(*options: object) -> None:
    run(build_parser().parse_args([*map(str, options), "--workers", "0"]))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    (root / "own.py").write_text(FACTORY)
    fill(root / "train", "xyz", 12)
    fill(root / "val", "xyz", 20)
    fill(root / "train" / ".git", "a", 1)
    fill(root / "part" / "val", "z", 2)
    return root


def test_what_is_trained_knows_its_classes_by_name(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start("--arch", f"{data / 'own.py'}:make", "--dataset", "folder", "--data", data, "--crop", 8,
          "--mean", 0.5, "--std", 0.25, "--epochs", 1, "--batch_size", 12,
          "--save_path", tmp_path)  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "images: resize 8 bilinear, crop 8, mean (0.5), std (0.25), grey"
    assert "note: hidden, and so neither images nor classes: train/.git" in lines
    (place,) = [number for number, line in enumerate(lines) if line.startswith("float: top-1")]
    assert lines[place + 1].startswith("note: the float network is right on ")
    assert artifact.load_quantized(tmp_path).class_names == ("x", "y", "z")
    start("--evaluate", tmp_path, "--dataset", "folder", "--data", data / "part", "--mean", 0.1)
    told = capsys.readouterr().out
    assert "note: the folder tells the network and its images; not used: --mean" in told
    assert "images: resize 8 bilinear, crop 8, mean (0.5), std (0.25), grey" in told
    fill(data / "part" / "val", "w", 1)
    with pytest.raises(OmpqError, match=r"class w is none of the network's 3 \(x, y, z\)"):
        start("--evaluate", tmp_path, "--dataset", "folder", "--data", data / "part")


def test_classes_that_the_images_have_not_are_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start("--arch", f"{data / 'own.py'}:make", "--num_classes", 5, "--dataset", "folder", "--data",
          data, "--crop", 8, "--epochs", 0, "--save_path", tmp_path)  # fmt: skip
    told = capsys.readouterr().out
    assert "note: the images are of 3 classes, the network tells 5" in told
    assert artifact.load_quantized(tmp_path).class_names == ()
