"""The images of main_imagenet.py are the user's: their classes, channels, sizes and values."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rewritten import change_file
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from ompq import artifact
from ompq.data.datasets.digits import open_digits
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess
from ompq.zoo import load_network
from PTQ.main_imagenet import build_parser, run

NAMES = "abcdefghij"
READ = ["--input_size", "8", "--mean", "0.3058", "--std", "0.3764", "--workers", "0"]
QUICK = ["--n_bits_w", "8", "--iters_w", "1", "--iters_a", "1", "--num_samples", "32"]


def write_digits(folder: Path, classes: str, start: int, stop: int) -> None:
    """Write the digits from `start` to `stop` into class folders; digit 0 is class `a`."""
    bunch = load_digits()
    pixels = (bunch.images * 255 / 16).round().astype(np.uint8)
    for index in range(start, stop):
        name = NAMES[bunch.target[index]]
        if name in classes:
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[index]).save(folder / name / f"{index}.png")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes in train/ with a folder of a notebook's among them, three of them in val/."""
    root = tmp_path_factory.mktemp("digits")
    write_digits(root / "train", NAMES, 0, 100)
    write_digits(root / "val", "cfh", 100, 400)
    write_digits(root / "train" / ".ipynb_checkpoints", "a", 0, 20)
    return root


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Options of a small network for grey images, which says nothing of them, trained on digits."""
    folder = tmp_path_factory.mktemp("network")
    (folder / "own.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 1, 1),\n"
        "                         nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))\n"
    )
    name = f"{folder / 'own.py'}:make"
    torch.manual_seed(0)
    module = load_network(name).module.train()
    split = open_digits(None, "train")
    images = (split.images / 16 - 0.3058) / 0.3764
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        cross_entropy(module(images), split.labels).backward()
        optimizer.step()
    torch.save(module.state_dict(), folder / "own.pth")
    return ["--arch", name, "--path", folder / "own.pth"]


def start(*options: object) -> None:
    run(build_parser().parse_args([str(option) for option in options]))


@pytest.fixture(scope="module")
def quantized(
    network: list[object], digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    start(*network, "--dataset", "folder", "--data", digits,
          *READ, *QUICK, "--output_dir", folder)  # fmt: skip
    return folder


def top1(text: str) -> float:
    return float(text.partition("top-1 ")[2].split()[0])


def test_classes_are_known_by_name_afterwards(
    quantized: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read = artifact.load_quantized(quantized)
    assert (read.class_names, read.num_classes) == (tuple(NAMES), 10)
    assert read.preprocess == Preprocess(8, 8, (0.3058,), (0.3764,))
    shutil.copytree(digits / "val", tmp_path / "val")
    for root in (digits, tmp_path):
        start("--evaluate", quantized, "--dataset", "folder", "--data", root, "--workers", "0")
        told = capsys.readouterr().out
        assert told.startswith(
            "images: resize 8 bilinear, crop 8, mean (0.3058), std (0.3764), grey"
        )
        assert top1(told) > 80
    (tmp_path / "val" / "c").rename(tmp_path / "val" / "k")
    with pytest.raises(OmpqError, match="class k is none of the network's 10"):
        start("--evaluate", quantized, "--dataset", "folder", "--data", tmp_path)


def test_a_result_of_an_earlier_version_has_no_names(quantized: Path, tmp_path: Path) -> None:
    own, file = quantized / artifact.FILE, tmp_path / artifact.FILE
    change_file(own, lambda _, description: description.pop("class_names"), file)
    assert artifact.load_quantized(tmp_path).class_names == ()
    change_file(own, lambda _, description: description.update(class_names=[1, 2]), file)
    with pytest.raises(OmpqError, match="class names are no list of texts"):
        artifact.load_quantized(tmp_path)


def test_too_many_classes_are_refused(
    quantized: Path, network: list[object], tmp_path: Path
) -> None:
    for name in (*NAMES, "k", "l"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "val" / name / "1.png")
    with pytest.raises(OmpqError, match="class k is none of"):
        start("--evaluate", quantized, "--dataset", "folder", "--data", tmp_path)
    shutil.copytree(tmp_path / "val", tmp_path / "train")
    with pytest.raises(OmpqError, match="images are of 12 classes, the network tells 10"):
        start(*network, "--dataset", "folder", "--data", tmp_path, *READ, *QUICK,
              "--output_dir", tmp_path / "out")  # fmt: skip


def test_labels_in_a_wrong_order_are_suspicious(
    network: list[object], digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(digits, tmp_path / "data")
    (tmp_path / "data" / "classes.txt").write_text("\n".join(reversed(NAMES)))
    start(*network, "--dataset", "folder", "--data",
          tmp_path / "data", *READ, *QUICK, "--output_dir", tmp_path / "out")  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.startswith("float: top-1")]
    assert lines[place + 1].startswith("note: the float network is right on ")
    assert "hardly better than guessing (10 %): check the order of the classes" in lines[place + 1]
    assert lines[0].startswith("images: ")
    assert "note: hidden, and so neither images nor classes: train/.ipynb_checkpoints" in lines
