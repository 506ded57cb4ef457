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
