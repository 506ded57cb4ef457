from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ompq.data import CalibrationImages, calibration_batches, calibration_images
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess

DIGITS = Preprocess(8, 8, (0.0,) * 3, (1.0,) * 3)


def _of_folder(root: Path, count: int, **options: Any) -> CalibrationImages:
    options = {"backend": "torchvision"} | options
    return calibration_images("imagenet", root, Preprocess(32, 40), count, **options)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 60), st.integers(1, 60), st.integers(0, 2**40))
def test_more_images_begin_with_the_fewer(count: int, more: int, seed: int) -> None:
    few = calibration_images("digits", None, DIGITS, count, seed=seed)
    many = calibration_images("digits", None, DIGITS, count + more, seed=seed)
    assert few.images.shape == (count, 3, 8, 8) and few.skipped == []
    assert torch.equal(many.images[:count], few.images)
    assert torch.equal(many.labels[:count], few.labels)


def test_other_seeds_give_other_images() -> None:
    one, same, other = (calibration_images("digits", None, DIGITS, 9, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.images, other.images)


def test_batches_are_the_same_images() -> None:
    batches = list(calibration_batches("digits", None, DIGITS, 600, 250, seed=3))
    assert [len(batch) for batch in batches] == [200, 200, 200]
    whole = calibration_images("digits", None, DIGITS, 600, seed=3)
    assert torch.equal(torch.cat(batches), whole.images)


def test_unreadable_images_are_replaced_while_there_are_any(damaged_folder: Path) -> None:
    found = [_of_folder(damaged_folder, 12, seed=seed, workers=2) for seed in range(4)]
    assert all(len(part.images) == len(part.labels) == 12 for part in found)
    assert all(set(map(Path, part.skipped)) <= _damaged(damaged_folder) for part in found)
    assert any(part.skipped for part in found)


def _damaged(root: Path) -> set[Path]:
    return set(root.rglob("*_*.jpg"))


def test_fewer_images_than_asked_for_are_reported(damaged_folder: Path) -> None:
    found = _of_folder(damaged_folder, 64)
    assert len(found.images) == len(found.labels) == 12
    assert set(map(Path, found.skipped)) == _damaged(damaged_folder)
    batches = calibration_batches("imagenet", damaged_folder, Preprocess(32, 40), 64, 5)
    assert sum(len(batch) for batch in batches) == 12
    assert len(batches.skipped) == 3


@pytest.mark.skipif(
    not (importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")),
    reason="NVIDIA DALI is not installed",
)
def test_dali_picks_and_skips_the_same(damaged_folder: Path) -> None:
    ours, theirs = (_of_folder(damaged_folder, 10, seed=1, backend=b) for b in ("auto", "dali"))
    assert ours.skipped == theirs.skipped and torch.equal(ours.labels, theirs.labels)
    assert (ours.images - theirs.images).abs().mean() < 0.02


@pytest.mark.parametrize("dataset", ["digits", "imagenet"])
def test_augmentation_is_applied_when_asked_for(dataset: str, image_folder: Path) -> None:
    preprocess = DIGITS if dataset == "digits" else Preprocess(32, 40)
    plain, one, same, other = (
        calibration_images(dataset, image_folder, preprocess, 6, augment=augment, seed=seed)
        for augment, seed in ((False, 0), (True, 0), (True, 0), (True, 1))
    )
    assert torch.equal(one.images, same.images) and torch.equal(one.labels, plain.labels)
    assert not torch.equal(one.images, plain.images)
    assert not torch.equal(one.images, other.images)


def test_plain_images_have_no_labels(photographs: list[Path], tmp_path: Path) -> None:
    for path in photographs[:2]:
        shutil.copy(path, tmp_path)
    found = _of_folder(tmp_path, 8)
    assert found.labels.tolist() == [-1, -1]


def test_none_or_a_single_image_is_an_error(photographs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    with pytest.raises(OmpqError, match=r"none of 1 images can be read \(the first: .*bad.jpg\)"):
        _of_folder(tmp_path, 8)
    shutil.copy(photographs[0], tmp_path)
    with pytest.raises(OmpqError, match=r"gave one \(8 asked for, 1 unreadable\)"):
        _of_folder(tmp_path, 8)
    with pytest.raises(OmpqError, match="`num_images` is 0"):
        _of_folder(tmp_path, 0)
