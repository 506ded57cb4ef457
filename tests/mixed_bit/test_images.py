"""The images of the bit search are the user's: their channels, sizes, values and folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixed_bit import compare, feature_extract, model_cost
from ompq.errors import OmpqError
from ompq.graph import trace
from ompq.zoo import load_network

OPTIONS = ["--quant_type", "PTQ", "--workers", "0"]


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network of the user's for grey images, which says nothing of them."""
    file = tmp_path_factory.mktemp("network") / "grey.py"
    file.write_text(
        "import torch\n"
        "from torch import nn\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))\n"
    )
    return f"{file}:make"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (4, 20, 24, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def search(*options: object) -> feature_extract.Found:
    arguments = feature_extract.build_parser().parse_args([*map(str, options), *OPTIONS])
    feature_extract.run(arguments)
    return feature_extract.extract(arguments)


def test_results_among_the_photos_are_not_looked_at_again(
    grey: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photos)
    found = search(
        "--model", grey, "--dataset", "images", "--save_path", ".", "--output_dir", ".",
        "--model_size", 0.001, "--input_size", 16, "--mean", 0.4, "--std", 0.2,
    )  # fmt: skip
    assert (photos / "bit_config.png").is_file()
    first, second = capsys.readouterr().out.split("written to ")
    line = "images: resize 16 bilinear, crop 16, mean (0.4), std (0.2), grey\n"
    assert first.startswith(line) and "4 images, prices by fisher" in first
    assert line in second
    assert "note: left out, since this toolkit has drawn it: bit_config.png" in second
    assert found.result.num_images == 4


def test_saved_images_have_the_networks_channels(
    grey: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(torch.randn(6, 1, 12, 10), tmp_path / "grey.pt")
    common = ["--model", grey, "--model_size", 0.001, "--output_dir", tmp_path]
    search(*common, "--calibration_data", tmp_path / "grey.pt")
    told = capsys.readouterr().out
    assert told.startswith(f"images: 6 of {tmp_path / 'grey.pt'}, 1×12×10, as they are\n")
    torch.save(torch.randn(6, 3, 12, 10), tmp_path / "colour.pt")
    with pytest.raises(OmpqError, match="is 6×3×12×10; expected images n×1×H×W"):
        search(*common, "--calibration_data", tmp_path / "colour.pt")


def test_the_cost_is_that_of_grey_images(grey: str) -> None:
    assignment = model_cost.measure_cost(grey, "uniform8", "PTQ", input_size=12)
    graph = trace(load_network(grey).module, (1, 12, 12))
    assert [group.ops for group in assignment.groups] == [group.ops for group in graph.groups]
    assert assignment.groups[0].params == 8 * (9 + 1)


def test_labels_that_the_network_does_not_tell_are_refused(grey: str, tmp_path: Path) -> None:
    with pytest.raises(OmpqError, match="images are of 10 classes, the network tells 4"):
        search("--model", grey, "--dataset", "digits", "--model_size", 0.001, "--metric", "fisher",
               "--labels", "--output_dir", tmp_path)  # fmt: skip


@pytest.mark.slow
def test_a_comparison_doubts_a_network_that_guesses(
    grey: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(80):
        folder = tmp_path / "data" / ("train", "val")[number % 2] / "abcd"[number // 2 % 4]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    arguments = [
        "--model", grey, "--dataset", "folder", "--data", tmp_path / "data", "--num_images", 8,
        "--input_size", 8, "--mean_bits", 6, "--bits", "4,8", "--random", 1, "--ranked", 2,
        "--output_dir", tmp_path / "out", *OPTIONS,
    ]  # fmt: skip
    compare.run(compare.build_parser().parse_args(list(map(str, arguments))))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("images: resize 8 bilinear, crop 8, mean (0.458971)")
    (place,) = [n for n, line in enumerate(lines) if line.endswith("% of 40 images")]
    assert lines[place].startswith("float: top-1 ")
    assert lines[place + 1].startswith("note: the float network is right on")
