from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ompq.data import make_loader, preprocess_for
from ompq.data.datasets.folders import open_folder, open_for_calibration, open_images
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess


def test_classes_are_numbered_by_name(image_folder: Path) -> None:
    split = open_folder(image_folder, "val")
    assert [path.name for path in split.paths] == [f"{n:02d}.jpg" for n in (0, 3, 1, 4, 2, 5)]
    assert split.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert split.num_classes == 3


def test_a_val_folder_with_fewer_classes_keeps_the_labels_of_train(
    image_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_folder, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "val" / "class0")
    assert open_folder(tmp_path / "data", "val").labels.tolist() == [1, 1, 2, 2]
    (tmp_path / "data" / "val" / "other").mkdir()
    split = open_folder(tmp_path / "data", "val")
    assert split.num_classes == 3
    assert split.notes == ("without images, and so no classes: val/other",)
    shutil.copy(split.paths[0], tmp_path / "data" / "val" / "other")
    with pytest.raises(OmpqError, match=r"has the class other, which .*train has not"):
        open_folder(tmp_path / "data", "val")


def test_linked_class_folders_and_capital_suffixes_count(
    photographs: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(photographs[0].parent, tmp_path / "elsewhere" / "deeper")
    shutil.copy(photographs[0], tmp_path / "elsewhere" / "A.JPG")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "one").symlink_to(tmp_path / "elsewhere")
    assert len(open_folder(tmp_path, "train").paths) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ((), r"has no folder train/ \(it holds nothing\); expected .*train/CLASS/"),
        (("val/a", "notes"), r"has no folder train/ \(it holds notes/, val/\); expected"),
        (("train",), r"train holds no images in class folders \(it holds nothing\)"),
        (("train/a", "train/b"), r"train holds no images in class folders \(it holds a/, b/\)"),
    ],
)
def test_a_wrong_folder_says_what_is_there(tmp_path: Path, make: tuple[str], message: str) -> None:
    for name in make:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(OmpqError, match=message):
        make_loader("imagenet", tmp_path, "train", Preprocess(), 4)


def test_a_missing_path_a_file_and_no_path_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root, message in (
        (tmp_path / "nowhere", "nowhere does not exist"),
        (tmp_path / "file", "is a file, not a folder"),
        (None, "needs its folder; give it as `root`"),
    ):
        with pytest.raises(OmpqError, match=message):
            make_loader("folder", root, "val", Preprocess(), 4)


def test_calibration_takes_train_or_plain_images(
    image_folder: Path, photographs: list[Path], tmp_path: Path
) -> None:
    assert open_for_calibration(image_folder).labels.max() == 2
    for folder in (tmp_path, tmp_path / "train"):
        folder.mkdir(exist_ok=True)
        shutil.copy(photographs[0], folder)
        assert open_for_calibration(folder).labels.tolist() == [-1]
    assert open_for_calibration(tmp_path).paths[0].parent.name == "train"
    assert len(open_images(tmp_path).paths) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ("val/a", "has val/ but no train/; calibration takes training images"),
        ("cats", r"has no folder train/ and no images \(it holds cats/\)"),
        ("train/a", "train holds no images in class folders"),
        ("train", r"train holds no images \(it holds nothing\)"),
    ],
)
def test_a_folder_without_calibration_images_is_named(
    tmp_path: Path, make: str, message: str
) -> None:
    (tmp_path / make).mkdir(parents=True)
    with pytest.raises(OmpqError, match=message):
        open_for_calibration(tmp_path)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OmpqError, match="`dataset` mnist: unknown; choose one of imagenet, "):
        preprocess_for("mnist", Preprocess())
    with pytest.raises(OmpqError, match="no split 'test'; it has train, val"):
        make_loader("digits", None, "test", Preprocess(8, 8), 4)
