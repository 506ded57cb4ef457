"""Pictures of every depth and mode are those of 8 bits, or named as unreadable."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ompq.data import make_loader
from ompq.data.decoding.backends import decode
from ompq.data.decoding.depths import convert_image
from ompq.preprocess import Preprocess

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
has_dali = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")


def read_back(path: Path, channels: int = 1) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(convert_image(image, channels))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("sixteen.png", GREY.astype(np.uint16) * 257),
        ("shifted.png", GREY.astype(np.uint16) << 8),
        ("sixteen.tif", GREY.astype(np.uint16) * 257),
        ("sixteen.pgm", GREY.astype(np.uint16) * 257),
        ("int8.tif", GREY.astype(np.int32)),
        ("int16.tif", GREY.astype(np.int32) * 257),
        ("float1.tif", GREY.astype(np.float32) / 255),
        ("float8.tif", GREY.astype(np.float32)),
        ("float16.tif", GREY.astype(np.float32) * 257),
    ],
)
def test_deep_grey_pictures_are_those_of_8_bits(
    tmp_path: Path, name: str, values: np.ndarray, channels: int
) -> None:
    Image.fromarray(values).save(tmp_path / name)
    expected = np.asarray(Image.fromarray(GREY).convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
    np.testing.assert_array_equal(read_back(tmp_path / name, channels), expected)


@pytest.mark.parametrize(
    "values",
    [
        GREY.astype(np.int32) - 1,
        GREY.astype(np.int32) << 20,
        GREY.astype(np.int32) * 4,
        GREY.astype(np.float32) * 1000,
        GREY.astype(np.float32) / 128,
        GREY.astype(np.float32) / 255 - 0.5,
        np.where(GREY > 7, GREY, np.nan).astype(np.float32),
    ],
)
def test_numbers_that_may_mean_anything_are_named_as_unreadable(
    tmp_path: Path, values: np.ndarray
) -> None:
    (tmp_path / "val" / "a").mkdir(parents=True)
    Image.fromarray(values).save(tmp_path / "val" / "a" / "odd.tif")
    Image.fromarray(GREY).save(tmp_path / "val" / "a" / "plain.tif")
    loader = make_loader("folder", tmp_path, "val", Preprocess(16, 16), 4)
    assert [len(labels) for _, labels in loader] == [1]
    assert [Path(file).name for file in loader.skipped] == ["odd.tif"]


def test_twelve_bits_fill_the_whole_range(tmp_path: Path) -> None:
    """Two values of 12 bits lie in three bytes."""
    values = GREY.astype(np.uint16).flatten() << 4
    even, odd = values[::2], values[1::2]
    parts = [even >> 4, (even & 15) << 4 | odd >> 8, odd & 255]
    packed = np.stack(parts, axis=1).astype(np.uint8).tobytes()
    Image.fromarray(GREY).save(tmp_path / "8.tif")
    content = bytearray((tmp_path / "8.tif").read_bytes())
    with Image.open(tmp_path / "8.tif") as image:
        places = image.tag_v2
        assert places[258] == (8,)
    content = _replace_tag(content, 258, 12)
    content = _replace_tag(content, 279, len(packed))
    offset = places[273][0]
    content[offset:] = packed
    (tmp_path / "12.tif").write_bytes(content)
    with Image.open(tmp_path / "12.tif") as image:
        assert image.mode == "I;16" and np.asarray(image).max() == 4080
    np.testing.assert_array_equal(read_back(tmp_path / "12.tif"), GREY)


def _replace_tag(content: bytearray, tag: int, value: int) -> bytearray:
    """Replace the value of a tag of a little-endian TIFF, which has it in its table."""
    start = int.from_bytes(content[4:8], "little")
    for index in range(int.from_bytes(content[start : start + 2], "little")):
        entry = start + 2 + 12 * index
        if int.from_bytes(content[entry : entry + 2], "little") == tag:
            content[entry + 8 : entry + 12] = value.to_bytes(4, "little")
    return content


def _make(mode: str) -> Image.Image:
    """Make a picture of a mode, and in RGB what it shows."""
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    if mode == "P with transparency":
        image = image.convert("P")
        image.info["transparency"] = bytes([0, 128] * 64 + [255] * 128)
        return image
    return image.convert(mode)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("1", "png"),
        ("1", "tif"),
        ("L", "png"),
        ("LA", "png"),
        ("P", "png"),
        ("P with transparency", "png"),
        ("RGBA", "png"),
        ("CMYK", "tif"),
        ("YCbCr", "tif"),
    ],
)
def test_every_mode_shows_its_picture(
    tmp_path: Path, mode: str, suffix: str, channels: int
) -> None:
    image = _make(mode)
    file = tmp_path / f"picture.{suffix}"
    options = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
    image.save(file, **options)
    image.info.pop("transparency", None)
    shown = image.convert("RGB")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_back(file, channels)
    expected = np.asarray(shown if channels == 3 else shown.convert("L"))
    assert np.abs(found.astype(int) - expected).max() <= (2 if mode == "YCbCr" else 0)


def test_transparency_is_kept_for_rgba(tmp_path: Path) -> None:
    image = _make("P with transparency")
    image.save(tmp_path / "a.png", transparency=image.info["transparency"])
    found = read_back(tmp_path / "a.png", 4)
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGBA")))
    assert set(np.unique(found[..., 3])) - {255}


@pytest.mark.skipif(not has_dali, reason="NVIDIA DALI is not installed")
@pytest.mark.parametrize("channels", [1, 4])
def test_decoders_agree_on_grey_and_rgba(photographs: list[Path], channels: int) -> None:
    preprocess = Preprocess(96, 112).with_channels(channels)
    found = []
    for backend in ("torchvision", "dali"):
        (piece,) = decode(photographs[:4], preprocess, backend=backend, workers=0)
        found.append(piece.images.float())
    assert found[0].shape == (4, channels, 96, 96)
    assert (found[0] - found[1]).abs().mean() < 0.4
    assert channels == 1 or torch.equal(found[1][:, 3], torch.full((4, 96, 96), 255.0))
