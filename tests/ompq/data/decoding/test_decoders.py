"""Both decoders: what they do with damaged files, and that they agree."""

from __future__ import annotations

import importlib.util
import io
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from ompq.data import make_loader
from ompq.data.datasets.folders import find_images
from ompq.data.decoding.backends import choose_backend, decode
from ompq.data.decoding.decoded import Decoded
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess

has_dali = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
needs_dali = pytest.mark.skipif(not has_dali, reason="NVIDIA DALI is not installed")
each_backend = pytest.mark.parametrize(
    "backend", ["torchvision", pytest.param("dali", marks=needs_dali)]
)


def _all(
    paths: Sequence[Path],
    preprocess: Preprocess,
    backend: str,
    seeds: Sequence[int] | None = None,
    workers: int = 0,
) -> Decoded:
    pieces = list(decode(paths, preprocess, backend=backend, workers=workers, seeds=seeds))
    readable = tuple(position for piece in pieces for position in piece.readable)
    unreadable = tuple(position for piece in pieces for position in piece.unreadable)
    return Decoded(torch.cat([piece.images for piece in pieces]), readable, unreadable)


@each_backend
def test_damaged_files_are_left_out_and_named(damaged_folder: Path, backend: str) -> None:
    paths = find_images(damaged_folder / "train")
    found = _all(paths, Preprocess(32, 40), backend)
    assert found.images.shape == (12, 3, 32, 32) and found.images.dtype == torch.uint8
    names = [paths[position].name for position in found.unreadable]
    assert names == ["01_cut.jpg", "02_text.jpg", "99_empty.jpg"]
    assert sorted(found.readable + found.unreadable) == list(range(15))


@each_backend
@pytest.mark.parametrize("seeded", [False, True])
def test_the_number_of_workers_changes_nothing(
    damaged_folder: Path, backend: str, seeded: bool
) -> None:
    paths = find_images(damaged_folder / "train") * 2
    seeds = list(range(len(paths))) if seeded else None
    one, three = (_all(paths, Preprocess(32, 40), backend, seeds, workers=n) for n in (0, 3))
    assert torch.equal(one.images, three.images)
    assert (one.readable, one.unreadable) == (three.readable, three.unreadable)


@each_backend
def test_only_damaged_files_or_none_at_all(tmp_path: Path, backend: str) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    found = _all([tmp_path / "a.jpg", tmp_path / "gone.jpg"], Preprocess(), backend)
    assert found.images.shape == (0, 3, 224, 224) and found.unreadable == (0, 1)
    assert list(decode([], Preprocess(), backend=backend, workers=0)) == []


@needs_dali
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("seeded", [False, True])
def test_decoders_agree_to_a_fraction_of_a_grey_level(
    photographs: list[Path], interpolation: str, seeded: bool
) -> None:
    paths = photographs[:8]
    seeds = list(range(8)) if seeded else None
    preprocess = Preprocess(interpolation=interpolation)
    ours, theirs = (_all(paths, preprocess, name, seeds) for name in ("torchvision", "dali"))
    difference = (ours.images.float() - theirs.images.float()).abs()
    assert difference.mean() < 0.25  # measured: 0.14 to 0.16
    assert difference.flatten(1).mean(dim=1).max() < 0.4  # measured: 0.21 for the worst image


def _trust_the_header(content: bytes) -> tuple[int, int] | None:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.height, image.width
    except OSError:
        return None


@needs_dali
def test_a_batch_that_dali_cannot_decode_goes_to_pillow(
    photographs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ompq.data.decoding.dali._read_jpeg_size", _trust_the_header)
    paths = [photographs[index % 2] for index in range(70)]
    whole = photographs[0].read_bytes()
    paths[40] = tmp_path / "cut.jpg"
    paths[40].write_bytes(whole[: len(whole) // 2])
    preprocess = Preprocess(24, 32)
    ours, theirs = (_all(paths, preprocess, name) for name in ("torchvision", "dali"))
    assert ours.readable == theirs.readable and theirs.unreadable == (40,)
    difference = (ours.images.float() - theirs.images.float()).abs().flatten(1).mean(dim=1)
    assert difference[0] > 0 and difference[-1] > 0 and difference.max() < 1
    assert difference[35] == 0


@needs_dali
def test_randomly_damaged_files_are_the_same_to_both(
    photographs: list[Path], tmp_path: Path
) -> None:
    """DALI 2.4 ends the process by a segmentation fault on such files, unless kept from them."""
    stream = io.BytesIO()
    Image.open(photographs[0]).resize((160, 120)).save(stream, "JPEG")
    rng = random.Random(0)
    paths = []
    for index in range(200):
        content = bytearray(stream.getvalue())
        for _ in range(rng.choice([0, 1, 5, 20])):
            content[rng.randrange(2, 700)] = rng.randrange(256)
        paths.append(tmp_path / f"{index}.jpg")
        paths[-1].write_bytes(content)
    ours, theirs = (_all(paths, Preprocess(32, 40), name) for name in ("torchvision", "dali"))
    assert ours.readable == theirs.readable and ours.unreadable == theirs.unreadable
    assert len(ours.readable) > 50 and len(ours.unreadable) > 50
    assert (ours.images.float() - theirs.images.float()).abs().mean() < 0.5


@needs_dali
@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "GIF"])
def test_decoders_agree_on_other_kinds_of_images(
    photographs: list[Path], tmp_path: Path, mode: str
) -> None:
    path = tmp_path / {"L": "a.jpg", "CMYK": "a.jpg", "GIF": "a.gif"}.get(mode, "a.png")
    Image.open(photographs[0]).convert("P" if mode == "GIF" else mode).save(path)
    ours, theirs = (_all([path], Preprocess(), name) for name in ("torchvision", "dali"))
    assert (ours.images.float() - theirs.images.float()).abs().mean() < 0.4


@needs_dali
def test_exif_orientation_is_ignored_by_both(photographs: list[Path], tmp_path: Path) -> None:
    image = Image.open(photographs[0])
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    paths = [tmp_path / "turned.jpg"]
    ours, theirs = (_all(paths, Preprocess(), name) for name in ("torchvision", "dali"))
    assert (ours.images.float() - theirs.images.float()).abs().mean() < 0.4


def test_a_backend_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ompq.data.decoding.backends._has_dali", lambda: False)
    with pytest.raises(OmpqError, match="pip install nvidia-dali-cuda130"):
        choose_backend("dali")
    with pytest.raises(OmpqError, match="`backend` ffcv: unknown; choose one of auto, torchvision"):
        make_loader("digits", None, "val", Preprocess(8, 8), 4, backend="ffcv")


@pytest.mark.parametrize(
    ("cuda", "dali", "chosen"),
    [(True, True, "dali"), (True, False, "torchvision"), (False, True, "torchvision")],
)
def test_auto_takes_dali_where_it_and_a_gpu_are_there(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, dali: bool, chosen: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("ompq.data.decoding.backends._has_dali", lambda: dali)
    assert choose_backend("auto") == chosen


def test_importing_the_package_imports_neither_dali_nor_scikit_learn() -> None:
    code = "import sys, ompq.data; print({'nvidia.dali', 'sklearn'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "set()\n", result.stderr


@each_backend
def test_a_pipe_called_like_a_picture_is_not_waited_for(tmp_path: Path, backend: str) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.jpg"]
    Image.new("RGB", (8, 8)).save(paths[0])
    os.mkfifo(paths[1])
    Image.new("RGB", (8, 8)).save(paths[2])
    found = _all(paths, Preprocess(8, 8), backend)
    assert found.readable == (0, 2) and found.unreadable == (1,)
