"""Images whose class changed: counted, and shown as what they are."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ompq.data.pixels import normalise
from ompq.evaluation import Predictions
from ompq.preprocess import Preprocess
from ompq.report.changes import Changes, find_changes

LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
FIRST = torch.tensor([0, 1, 2, 0, 1, 2])
SECOND = torch.tensor([0, 2, 2, 3, 2, 2])


def _predictions(classes: Tensor, labels: Tensor = LABELS) -> Predictions:
    return Predictions(classes[:, None], labels)


def _read(picture: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))))


@pytest.mark.parametrize("channels", [1, 3])
def test_changes_are_counted_and_their_pictures_are_the_images(channels: int) -> None:
    preprocess = Preprocess(8, 8, (0.4,) * channels, (0.2,) * channels)
    pixels = torch.randint(0, 256, (6, channels, 8, 8), dtype=torch.uint8)
    images = normalise(pixels, preprocess)
    batches = list(zip(images.split(4), LABELS.split(4), strict=True))
    found = find_changes(_predictions(FIRST), _predictions(SECOND), batches, preprocess)
    assert (found.num_images, found.changed, found.repaired, found.broken) == (6, 3, 1, 1)
    assert [shown["index"] for shown in found.images] == [1, 3, 4]
    assert found.images[0]["float"] == 1 and found.images[0]["quantized"] == 2
    for shown in found.images:
        expected = pixels[shown["index"]].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(_read(shown["picture"]).reshape(8, 8, channels), expected)


def test_large_pictures_become_small(tmp_path: object) -> None:
    preprocess = Preprocess(160, 160, (0.4,) * 3, (0.2,) * 3)
    images = torch.randn(6, 3, 160, 160)
    batches = [(images, LABELS)]
    found = find_changes(_predictions(FIRST), _predictions(SECOND), batches, preprocess)
    assert _read(found.images[0]["picture"]).shape == (96, 96, 3)
    assert len(found.images[0]["picture"]) < 20_000


def test_nothing_is_read_where_nothing_changed() -> None:
    def refuse() -> object:
        raise AssertionError("images are read")
        yield

    preprocess = Preprocess(8, 8, (0.4,), (0.2,))
    same = _predictions(FIRST)
    found = find_changes(same, same, refuse(), preprocess)  # type: ignore[arg-type]
    assert found.changed == 0 and not found.images


def test_what_processes_found_is_added() -> None:
    several = Changes(4, 2, 1, 1, True, [{"index": 0}] * 20)
    several.add(Changes(3, 1, 0, 1, True, [{"index": 1}] * 20))
    several.add(Changes())
    content = several.to_json(["a"])
    assert (content["num_images"], content["changed"], content["repaired"]) == (7, 3, 1)
    assert len(content["images"]) == 24 and content["class_names"] == ["a"]
