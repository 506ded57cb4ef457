"""The folder of a web page holds all that it needs, and tells what is so of its network."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from exported import DIGITS_PREPROCESS, draw_digits, make_artifact, train_on_digits
from kinds import build_kind, draw_images
from torch import nn

from ompq.artifact import Artifact
from ompq.data.pixels import normalise
from ompq.errors import OmpqError
from ompq.export import export_network, verify_file
from ompq.export.targets import find_integers
from ompq.export.web import page
from ompq.export.web.onnxruntime_web import NpmPackage
from ompq.export.web.page import describe_network, measure_float_bytes

SOURCES = [
    file for file in files("ompq.export.web").iterdir() if file.name.endswith(("html", "js", "css"))
]

ENDINGS = "js|css|json|onnx|safetensors|wasm"


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    pixels, _ = draw_digits()
    images = normalise(pixels[:64], DIGITS_PREPROCESS)
    folder = tmp_path_factory.mktemp("digits")
    names = [f"the digit {number}" for number in range(10)]
    return make_artifact(train_on_digits(2), images, folder, 5, DIGITS_PREPROCESS, names)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in the place of those that npm would fetch."""
    names = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
    places = {f"dist/{name}": tmp_path / "fetched" / name for name in names}
    (tmp_path / "fetched").mkdir()
    for place in places.values():
        place.write_text("fetched")
    monkeypatch.setattr(page, "fetch_package", lambda: places)


@pytest.fixture
def web(stand_in: None, read: Artifact, tmp_path: Path) -> Path:
    pytest.importorskip("onnx")
    export_network(read, ["web"], tmp_path / "out")
    return tmp_path / "out" / "web"


def test_the_page_finds_all_that_it_asks_for(web: Path) -> None:
    asked = set()
    for file in web.iterdir():
        if file.suffix in (".html", ".js", ".css"):
            text = file.read_text(encoding="utf-8")
            asked |= set(re.findall(rf"[\"'](?:\./)?([\w.-]+\.(?:{ENDINGS}))[\"']", text))
    assert {"page.js", "style.css", "network.json", "model.onnx", "ort.wasm.bundle.min.js"} <= asked
    assert asked <= {file.name for file in web.iterdir()}
    # ONNX Runtime asks for it by this name.
    assert (web / "ort-wasm-simd-threaded.wasm").read_text() == "fetched"
    assert "Microsoft" in (web / "LICENSE.onnxruntime-web.txt").read_text()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_the_page_names_no_address_elsewhere(source: Path) -> None:
    found = set(re.findall(r"https?://[^\s\"'<)]+", source.read_text(encoding="utf-8")))
    assert found <= {"http://localhost:8000", "http://www.w3.org/2000/svg"}


def test_the_sources_of_the_page_are_short() -> None:
    assert len(SOURCES) >= 5
    for source in SOURCES:
        assert len(source.read_text(encoding="utf-8").splitlines()) < 400


def test_the_network_is_told_as_it_is(web: Path, read: Artifact) -> None:
    told = json.loads((web / "network.json").read_text(encoding="utf-8"))
    assert told == json.loads(json.dumps(describe_network(read, find_integers(read))))
    assert told["class_names"][3] == "the digit 3" and told["input_shape"] == [1, 8, 8]
    assert told["preprocess"]["mean"] == [0.3] and told["preprocess"]["interpolation"] == "bilinear"
    assert [group["weights"] for group in told["groups"]] == [72, 1152, 2560]
    assert [group["bits"] for group in told["groups"]] == [8, 5, 8]
    assert told["promised_bytes"] == pytest.approx(read.description["model_size_mb"] * 2**20, abs=1)


def test_the_model_is_the_packed_one_and_can_be_verified(web: Path, read: Artifact) -> None:
    pytest.importorskip("onnxruntime")
    (packed,) = export_network(read, ["onnx-packed"], web.parent)
    assert packed.file.read_bytes() == (web / "model.onnx").read_bytes()
    found = verify_file(web / "model.onnx")
    assert found.logits == 80 and found.agreement == 100
    assert "0 of 80 logits differ from those of the run that wrote it" in found.notes


def test_a_page_is_written_over_an_earlier_one_but_not_over_other_files(
    web: Path, read: Artifact
) -> None:
    (web / "index.html").write_text("earlier")
    (row,) = export_network(read, ["web"], web.parent)
    assert row.file == web / "model.onnx" and row.title == "web/model.onnx"
    assert "<!doctype html>" in (web / "index.html").read_text(encoding="utf-8")
    (web / "notes.txt").write_text("mine")
    with pytest.raises(OmpqError, match=r"holds notes\.txt"):
        export_network(read, ["web"], web.parent)
    assert (web / "notes.txt").read_text() == "mine"
    assert [file.name for file in web.parent.iterdir()] == ["web"]


def test_without_npm_nothing_is_written(
    read: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(OmpqError, match="needs npm, once"):
        export_network(read, ["web"], tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("folded", [True, False])
def test_bytes_in_float_are_four_a_parameter(folded: bool, tmp_path: Path) -> None:
    """A batch norm behind a convolution becomes its bias; one that stands alone stays."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6, 5)]
    layers[3:3] = [nn.AdaptiveAvgPool2d(1)]
    if not folded:
        layers[1:1] = [nn.MaxPool2d(2)]
    network = nn.Sequential(*layers).eval()
    read = make_artifact(network, draw_images(8), tmp_path)
    expected = count_parameters(network) - (12 if folded else 0)
    assert measure_float_bytes(find_integers(read)) == 4 * expected


@pytest.mark.parametrize("kind", ["tied weights", "positions"])
def test_a_shared_weight_counts_once_and_a_table_of_constants_does_not(
    kind: str, tmp_path: Path
) -> None:
    network = build_kind(kind)
    read = make_artifact(network, draw_images(8), tmp_path)
    assert measure_float_bytes(find_integers(read)) == 4 * count_parameters(network)


def test_a_package_is_named_as_npm_names_it() -> None:
    assert NpmPackage("some", "1.0.0", {}).title == "some@1.0.0"
