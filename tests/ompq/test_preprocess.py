"""Preprocess validates itself."""

from __future__ import annotations

from typing import Any

import pytest

from ompq.errors import OmpqError
from ompq.preprocess import Preprocess


def test_defaults_are_imagenets() -> None:
    preprocess = Preprocess()
    assert (preprocess.input_size, preprocess.resize, preprocess.channels) == (224, 256, 3)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"input_size": 0}, "at least 1 pixel"),
        ({"input_size": 300}, "smaller than `input_size`"),
        ({"mean": (0.5,)}, "the same channels"),
        ({"std": (0.2, 0.0, 0.2)}, "`std` must be positive"),
        ({"mean": (0.5, float("nan"), 0.5)}, "`mean` must be finite"),
        ({"interpolation": "nearest"}, "bilinear, bicubic"),
    ],
)
def test_contradictions_are_named(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(OmpqError, match=complaint):
        Preprocess(**change)


def test_another_crop_keeps_the_proportion() -> None:
    preprocess = Preprocess(input_size=224, resize=256, interpolation="bicubic")
    smaller = preprocess.at(112)
    assert (smaller.input_size, smaller.resize, smaller.interpolation) == (112, 128, "bicubic")
    assert preprocess.at(None) is preprocess


@pytest.mark.parametrize("size", [8, 28, 32, 99])
def test_small_images_are_not_zoomed(size: int) -> None:
    assert Preprocess().at(size).resize == size
    assert Preprocess(48, 56).at(size).resize == size


def test_what_is_made_for_a_size_keeps_its_zoom() -> None:
    assert Preprocess(32, 36).at(32).resize == 36


def test_one_number_stands_for_all_channels() -> None:
    changed = Preprocess().normalised_by((0.5,), (0.2, 0.3, 0.4))
    assert (changed.mean, changed.std) == ((0.5,) * 3, (0.2, 0.3, 0.4))
    grey = Preprocess(mean=(0.1,), std=(0.3,))
    assert grey.normalised_by(None, (0.7,)).describe().endswith("mean (0.1), std (0.7), grey")
    assert grey.normalised_by((0.1, 0.2, 0.3), (0.5,)).channels == 3
    with pytest.raises(OmpqError, match="the same channels, got 3 and 2"):
        Preprocess().normalised_by(None, (0.5, 0.5))


def test_the_whole_of_it_is_one_line() -> None:
    assert Preprocess(interpolation="bicubic").describe() == (
        "resize 256 bicubic, crop 224, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225), RGB"
    )


def test_grey_gets_the_mean_of_the_luminance() -> None:
    grey = Preprocess().with_channels(1)
    assert grey.mean[0] == pytest.approx(0.299 * 0.485 + 0.587 * 0.456 + 0.114 * 0.406, abs=1e-6)
    assert grey.with_channels(3).mean == grey.mean * 3
    with pytest.raises(OmpqError, match="takes images of 2 channels; give `mean` and `std`"):
        Preprocess().with_channels(2)


def test_images_have_one_three_or_four_channels() -> None:
    Preprocess().with_channels(4).check_colours()
    with pytest.raises(OmpqError, match="`mean` names 2 channels; images are read with 1"):
        Preprocess(mean=(0.5,) * 2, std=(0.5,) * 2).check_colours()
