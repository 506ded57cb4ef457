"""What is exported computes the network of integers, or is not there."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from converted import build
from kinds import build_kind, draw_images
from saved import IMAGES, save
from torch import Tensor

from ompq.artifact import Artifact, load_quantized, save_quantized
from ompq.assignment import uniform
from ompq.data import make_loader
from ompq.errors import OmpqError
from ompq.export import TARGETS, TestImages, export_network, verify_file
from ompq.export.runtimes import open_onnx
from ompq.export.targets import Written
from ompq.export.test_images import find_test_images
from ompq.graph import trace
from ompq.integer import ConversionSettings, calibrate, convert_to_integers
from ompq.preprocess import Preprocess
from ompq.zoo import load_network


def needs_runtime(name: str) -> None:
    if name.startswith("onnx"):
        pytest.importorskip("onnxruntime")
    if name == "c" and shutil.which("cc") is None:
        pytest.skip("there is no C compiler")


@pytest.fixture(scope="module")
def digits() -> Tensor:
    """Test images of the digits, normalised."""
    preprocess = load_network("small_resnet").preprocess
    loader = make_loader("digits", None, "val", preprocess, 512)
    return torch.cat([images for images, _ in loader])


@pytest.fixture(scope="module")
def source(trained: Path, digits: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a trained network of integers."""
    network = load_network("small_resnet", path=trained)
    graph = trace(network.module, tuple(digits.shape[1:]))
    widths = uniform(graph.groups, 4, 8)
    chosen = widths.layer_bits(), widths.layer_act_bits()
    integers = convert_to_integers(graph, *chosen, ConversionSettings())
    calibrate(integers, [digits[:64]], torch.device("cpu"))
    file = tmp_path_factory.mktemp("result") / "quantized.safetensors"
    save_quantized(file, integers, widths, source=network, preprocess=network.preprocess)
    return file


@pytest.fixture(scope="module")
def read(source: Path) -> Artifact:
    return load_quantized(source)


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "web"])
def test_every_target_computes_the_network_of_integers(
    name: str, read: Artifact, digits: Tensor, tmp_path: Path
) -> None:
    needs_runtime(name)
    (found,) = export_network(read, [name], tmp_path, digits)
    assert found.file.is_file() and found.size > 0 and found.runtime
    assert not list(tmp_path.glob(".*"))
    if TARGETS[name].is_exact:
        assert found.differing == 0 and found.agreement == 100
    else:
        assert found.agreement is not None and found.agreement >= 99
    expected = 8 if name == "c" else len(digits)
    assert found.logits == expected * 10
    again = verify_file(found.file)
    assert again.logits == 80
    assert again.differing == 0 or not TARGETS[name].is_exact


def test_packed_is_as_small_as_promised_and_codes_are_smaller(
    read: Artifact, source: Path, tmp_path: Path
) -> None:
    plain, coded = export_network(read, ["packed", "packed-entropy"], tmp_path)
    # Both have one name: the second has replaced the first.
    assert plain.file == coded.file and coded.size == coded.file.stat().st_size
    assert coded.size < plain.size < 1.2 * read.description["model_size_mb"] * 2**20
    assert plain.size == pytest.approx(source.stat().st_size, rel=0.01)


def test_a_device_finds_pixels_and_logits_beside_a_file(
    read: Artifact, digits: Tensor, tmp_path: Path
) -> None:
    (found,) = export_network(read, ["packed"], tmp_path, digits)
    tests = TestImages.load(find_test_images(found.file))
    assert tests.pixels.shape == (8, *digits.shape[1:]) and tests.pixels.dtype == torch.uint8
    # The digits were 8-bit pixels: these are they.
    assert torch.allclose(tests.images, digits[:8], atol=1e-2)
    with torch.inference_mode():
        logits = load_quantized(found.file).network.module(tests.images)
    assert torch.equal(logits, tests.logits)
    assert torch.equal(tests.computed, tests.logits)


def test_images_that_came_normalised_by_others_keep_their_range() -> None:
    images = 50 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 20
    tests = TestImages.of(images, Preprocess(8, 8))
    steps = (images.amax((0, 2, 3)) - images.amin((0, 2, 3))) / 255
    assert ((tests.images - images).abs() <= 0.51 * steps.view(-1, 1, 1)).all()


def save_kind(kind: str, folder: Path) -> Artifact:
    network, images = build_kind(kind), draw_images(8)
    widths = uniform(trace(network, tuple(images.shape[1:])).groups, 8, 8)
    file = folder / "quantized.safetensors"
    save_quantized(file, build(network, images), widths)
    return load_quantized(file, network)


def test_what_a_target_has_no_form_of_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    read = save_kind("layer of another code", tmp_path / "result")
    pytest.importorskip("onnx")
    for name in ("c", "onnx-integer"):
        with pytest.raises(OmpqError, match="CentredLinear"):
            export_network(read, [name], tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())
    needs_runtime("onnx")
    (found,) = export_network(read, ["onnx"], tmp_path / "out")
    assert found.logits


def test_activations_in_float_are_packed_but_not_exported(tmp_path: Path) -> None:
    saved = save(tmp_path / "made", symmetric=True, per_channel=True, activations=False)
    read = load_quantized(saved.file)
    (found,) = export_network(read, ["packed"], tmp_path)
    assert found.differing == 0
    with torch.inference_mode():
        again = load_quantized(found.file).network.module(IMAGES)
        assert torch.equal(again, saved.network.module(IMAGES))
    for name in ("c", "onnx"):
        with pytest.raises(OmpqError, match="`act_quant`"):
            export_network(read, [name], tmp_path)


def test_without_a_runtime_a_file_is_written_and_that_is_said(
    read: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    told: list[str] = []
    onnx, c = export_network(read, ["onnx", "c"], tmp_path, say=told.append)
    assert onnx.file.is_file() and c.file.is_file() and not onnx.logits and not c.logits
    assert len(told) == 2 and "pip install onnxruntime" in told[0] and "`cc`" in told[1]
    monkeypatch.undo()
    needs_runtime("onnx")
    again = verify_file(onnx.file)
    assert again.logits == 80 and again.notes[0] == "it was not run where it was written"


def test_a_file_that_was_changed_is_found(read: Artifact, digits: Tensor, tmp_path: Path) -> None:
    needs_runtime("c")
    packed, c = export_network(read, ["packed", "c"], tmp_path, digits)
    content = bytearray(packed.file.read_bytes())
    content[len(content) // 2] ^= 4
    packed.file.write_bytes(content)
    with pytest.raises(OmpqError, match="damaged"):
        verify_file(packed.file)
    for name in ("model.c", "model.h", "test_vectors.h"):
        changed = c.file.with_name(name)
        text = changed.read_text()
        changed.write_text(text.replace("0", "1", 1))
        with pytest.raises(OmpqError, match=rf"{name} is .*damaged"):
            verify_file(c.file)
        changed.unlink()
        with pytest.raises(OmpqError, match=rf"cannot read .*{name}|{name} does not exist"):
            verify_file(c.file)
        changed.write_text(text)
    assert verify_file(c.file).size == c.size


@pytest.mark.parametrize("target", ["onnx", "onnx-packed", "onnx-integer"])
def test_a_changed_model_is_found(
    target: str, read: Artifact, digits: Tensor, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    needs_runtime("onnx")
    (found,) = export_network(read, [target], tmp_path, digits)
    content = found.file.read_bytes()
    middle = len(content) // 2
    for changed in (
        b"",
        content[:-100],
        content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    ):
        found.file.write_bytes(changed)
        with pytest.raises(OmpqError, match="damaged, changed or of another network"):
            verify_file(found.file)
    found.file.write_bytes(content)
    verify_file(found.file)
    tests = find_test_images(found.file)
    held = bytearray(tests.read_bytes())
    held[-1] ^= 1
    tests.write_bytes(held)
    with pytest.raises(OmpqError, match=rf"{tests.name} is damaged"):
        verify_file(found.file)


@pytest.mark.parametrize("content", [b"", b"nothing of the kind"])
def test_what_is_no_model_is_said_in_one_line(content: bytes, tmp_path: Path) -> None:
    needs_runtime("onnx")
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(OmpqError, match=r"ONNX Runtime .* cannot read") as raised:
        open_onnx(file)
    assert "\n" not in str(raised.value)


def test_a_model_that_cannot_be_run_leaves_nothing_and_its_line_names_what_is_there(
    read: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("onnx")
    needs_runtime("onnx")

    def write(read: Artifact, tests: TestImages, folder: Path) -> Written:
        (folder / "model.onnx").write_bytes(b"nothing of the kind")
        return Written("model.onnx", 1)

    monkeypatch.setitem(TARGETS, "onnx", replace(TARGETS["onnx"], write=write))
    with pytest.raises(OmpqError, match=r"ONNX Runtime .* cannot read model\.onnx: \w") as raised:
        export_network(read, ["onnx"], tmp_path)
    assert "ONNXRuntimeError" not in str(raised.value) and str(tmp_path) not in str(raised.value)
    assert not list(tmp_path.iterdir()) and not capfd.readouterr().err


def test_what_others_made_or_changed_is_not_replaced(
    read: Artifact, digits: Tensor, tmp_path: Path
) -> None:
    (found,) = export_network(read, ["packed"], tmp_path, digits)
    export_network(read, ["packed"], tmp_path, digits)
    content = found.file.read_bytes() + b" "
    found.file.write_bytes(content)
    with pytest.raises(OmpqError, match=rf"{found.file.name} is no file that an export wrote"):
        export_network(read, ["packed"], tmp_path, digits)
    assert found.file.read_bytes() == content
    needs_runtime("c")
    (tmp_path / "model.h").write_text("mine")
    with pytest.raises(OmpqError, match=r"model\.h is no file that an export wrote"):
        export_network(read, ["c"], tmp_path, digits)
    assert not (tmp_path / "model.c").exists() and (tmp_path / "model.h").read_text() == "mine"


def test_a_pair_that_a_killed_export_left_is_replaced_by_the_next(
    read: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = export_network(read, ["packed"], tmp_path)
    replace_file = os.replace

    def die(old: Path, new: Path) -> None:
        if Path(new) == find_test_images(found.file):
            raise KeyboardInterrupt
        replace_file(old, new)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", die)
        export_network(read, ["packed-entropy"], tmp_path)
    with pytest.raises(OmpqError, match="export the network again"):
        verify_file(found.file)
    for name in ("packed-entropy", "packed"):
        export_network(read, [name], tmp_path)
        assert not verify_file(found.file).differing
    assert len(list(tmp_path.iterdir())) == 2


def test_what_cannot_be_verified_is_said(read: Artifact, tmp_path: Path) -> None:
    with pytest.raises(OmpqError, match="does not exist"):
        verify_file(tmp_path / "model.onnx")
    (found,) = export_network(read, ["packed"], tmp_path)
    with pytest.raises(OmpqError, match="goes with an exported file"):
        verify_file(find_test_images(found.file))
    find_test_images(found.file).unlink()
    with pytest.raises(OmpqError, match=r"test\.safetensors does not exist"):
        verify_file(found.file)
    with pytest.raises(OmpqError, match="is a folder"):
        verify_file(tmp_path)
    other = tmp_path / "notes.txt"
    other.write_text("")
    with pytest.raises(OmpqError, match="does not exist"):
        verify_file(other)


@pytest.mark.parametrize(
    ("targets", "images", "message"),
    [
        (["tflite"], None, "no target 'tflite'"),
        (["packed"], torch.zeros(2, 1, 16, 16), "the network takes"),
        (["packed"], torch.zeros(0, 3, 16, 16), "the network takes"),
    ],
)
def test_wrong_wishes_are_refused(
    targets: list[str], images: Tensor | None, message: str, read: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(OmpqError, match=message):
        export_network(read, targets, tmp_path / "out", images)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_folder_that_cannot_be_written_is_said(read: Artifact, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OmpqError, match="file"):
        export_network(read, ["packed"], tmp_path / "file" / "out")
