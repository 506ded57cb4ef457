from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from ompq.data.decoding.pillow import cut
from ompq.data.decoding.views import compute_evaluation_view, draw_random_view
from ompq.preprocess import Preprocess

sides = st.integers(1, 700)


@given(sides, sides, st.integers(0, 2**62))
def test_a_random_view_lies_within_the_image(height: int, width: int, seed: int) -> None:
    view = draw_random_view(height, width, Preprocess(), seed)
    top, left, tall, wide = view.box
    assert top >= 0 and left >= 0 and tall > 0 and wide > 0
    assert top + tall <= height and left + wide <= width
    assert view == draw_random_view(height, width, Preprocess(), seed)


def test_random_views_differ_and_half_are_mirrored() -> None:
    views = [draw_random_view(480, 640, Preprocess(), seed) for seed in range(400)]
    areas = np.array([view.box[2] * view.box[3] / (480 * 640) for view in views])
    assert len({view.box for view in views}) > 390
    assert 0.4 < np.mean([view.mirrored for view in views]) < 0.6
    assert 0.07 < areas.min() < 0.2 and areas.max() > 0.8


@given(st.integers(1, 500), st.integers(1, 500), st.sampled_from([(8, 8), (15, 16), (224, 256)]))
def test_the_evaluation_view_is_whole_and_centred(
    height: int, width: int, sizes: tuple[int, int]
) -> None:
    view = compute_evaluation_view(height, width, Preprocess(*sizes))
    assert view.box == (0, 0, height, width)
    assert min(view.resized) == sizes[1]
    for side, start in zip(view.resized, view.corner, strict=True):
        assert start >= 0 and start + sizes[0] <= side
        assert abs(2 * start + sizes[0] - side) <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("sizes", [(224, 256), (31, 40)])
def test_the_evaluation_view_is_torchvisions(
    photographs: list[Path], interpolation: str, sizes: tuple[int, int]
) -> None:
    preprocess = Preprocess(*sizes, interpolation=interpolation)
    mode = transforms.InterpolationMode(interpolation)
    theirs = transforms.Compose(
        [
            transforms.Resize(sizes[1], mode),
            transforms.CenterCrop(sizes[0]),
            transforms.PILToTensor(),
        ]
    )
    for path in photographs[:3]:
        image = Image.open(path).convert("RGB")
        ours = cut(
            image, compute_evaluation_view(image.height, image.width, preprocess), preprocess
        )
        assert torch.equal(ours, theirs(image))


def test_a_random_view_is_torchvisions_resized_crop(photographs: list[Path]) -> None:
    preprocess = Preprocess(64, 64)
    image = Image.open(photographs[0]).convert("RGB")
    view = draw_random_view(image.height, image.width, preprocess, seed=4)
    crop = transforms.functional.resized_crop(image, *view.box, [64, 64])
    theirs = transforms.functional.pil_to_tensor(crop)
    assert torch.equal(cut(image, view, preprocess), theirs.flip(-1) if view.mirrored else theirs)
