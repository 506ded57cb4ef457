"""Which folders are classes, which numbers they have, and what in a folder is no user's image."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ompq.data import calibration_images, make_loader
from ompq.data.datasets.classes import match_classes
from ompq.data.datasets.digits import open_digits
from ompq.data.datasets.folders import open_folder, open_for_calibration, open_images
from ompq.errors import OmpqError
from ompq.plots import figure
from ompq.preprocess import Preprocess

NAMES = tuple("ape bee cat dog eel fox gnu hen ibis jay".split())


def fill(root: Path, *names: str) -> Path:
    """Write a picture for every name; one that ends in a slash is an empty folder."""
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (len(name), 0, 0)).save(path)
    return root


def names_of(root: Path, split: str, **how: object) -> tuple[tuple[str, ...], list[int], list[str]]:
    loader = make_loader("folder", root, split, Preprocess(8, 8), 4, **how)
    return loader.class_names, loader.split.labels.tolist(), loader.notes


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", ".git", "__MACOSX", ".thumbnails"])
@pytest.mark.parametrize(
    "depth", ["train/{}/1.png", "train/b/{}/1.png", "val/{}/1.png", "{}/1.png"]
)
def test_hidden_folders_are_no_classes(tmp_path: Path, hidden: str, depth: str) -> None:
    place = depth.format(hidden)
    fill(tmp_path, "train/b/1.png", "train/c/1.png", "val/b/1.png", "val/c/1.png", place)
    told = []
    for split in ("train", "val"):
        names, labels, notes = names_of(tmp_path, split)
        assert (names, labels) == (("b", "c"), [0, 1])
        told += notes
    if place.startswith(("train", "val")):
        assert any(note.startswith("hidden") and hidden in note for note in told)
    assert len(open_images(tmp_path).paths) == 4


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    fill(tmp_path, "train/b/1.png", "train/b/._1.png", "train/.x.png")
    names, labels, notes = names_of(tmp_path, "train")
    assert (names, labels) == (("b",), [0])
    assert notes == ["hidden, and so neither images nor classes: train/b/._1.png"]
    assert open_for_calibration(tmp_path).labels.tolist() == [0]


def test_a_few_empty_folders_are_no_classes(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/", "train/b/1.png", "train/c/notes/", "train/d/1.png", "val/d/1.png")
    for split, labels in (("train", [0, 1]), ("val", [1])):
        names, found, notes = names_of(tmp_path, split)
        assert (names, found) == (("b", "d"), labels)
        assert notes == ["2 folder(s) without images are no classes: a, c"]


def test_an_empty_folder_of_train_is_a_class_where_val_has_images_of_it(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/", "train/b/1.png", "val/a/1.png", "val/b/1.png")
    assert names_of(tmp_path, "val")[:2] == (("a", "b"), [0, 1])


def test_both_splits_give_one_answer(tmp_path: Path) -> None:
    fill(tmp_path, "train/b/1.png", "train/a/", "train/c/", "val/c/1.png", "val/b/1.png")
    assert names_of(tmp_path, "train")[:2] == (("b", "c"), [0])
    assert names_of(tmp_path, "val")[:2] == (("b", "c"), [0, 1])


def test_training_images_without_classes_number_none(tmp_path: Path) -> None:
    fill(tmp_path, "train/1.png", "val/c/1.png", "val/b/1.png")
    assert names_of(tmp_path, "val")[:2] == (("b", "c"), [0, 1])
    assert open_for_calibration(tmp_path).labels.tolist() == [-1]


def test_many_empty_folders_are_there_for_the_numbers(tmp_path: Path) -> None:
    fill(tmp_path, *(f"train/{name}/" for name in NAMES), "train/dog/1.png", "val/hen/1.png")
    names, labels, notes = names_of(tmp_path, "val")
    assert (names, labels) == (NAMES, [7])
    assert notes == ["8 of 10 class folders hold no images, and count as classes: ape, bee, cat, …"]


def test_the_network_tells_whether_empty_folders_are_classes(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/", "train/b/1.png", "train/c/1.png")
    assert names_of(tmp_path, "train", num_classes=3)[:2] == (("a", "b", "c"), [1, 2])
    assert names_of(tmp_path, "train", num_classes=2)[:2] == (("b", "c"), [0, 1])
    fill(tmp_path, *(f"train/{name}/" for name in NAMES))
    assert names_of(tmp_path, "train", num_classes=2)[:2] == (("b", "c"), [0, 1])
    found = calibration_images("folder", tmp_path, Preprocess(8, 8), 2, num_classes=2)
    assert sorted(found.labels.tolist()) == [0, 1]


def test_a_class_file_gives_the_numbers(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.png", "train/b/1.png", "val/b/1.png", "train/z/")
    (tmp_path / "classes.txt").write_text("b bee, a kind of insect\nx\na\n")
    assert names_of(tmp_path, "val")[:2] == (("b", "x", "a"), [0])
    assert names_of(tmp_path, "train")[:2] == (("b", "x", "a"), [0, 2])


def test_a_class_file_may_be_about_something_else_but_not_half(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.png", "train/b/1.png")
    (tmp_path / "classes.txt").write_text("person\ncar\n")
    names, labels, notes = names_of(tmp_path, "train")
    assert (names, labels) == (("a", "b"), [0, 1])
    assert "classes.txt names none of the class folders; not used" in notes[0]
    (tmp_path / "classes.txt").write_text("a\nc\n")
    with pytest.raises(OmpqError, match="does not name the class b; correct it"):
        open_folder(tmp_path, "train")


def test_labels_are_matched_to_the_network_by_name(tmp_path: Path) -> None:
    fill(tmp_path, "val/gnu/1.png", "val/bee/1.png", "val/jay/1.png")
    names, labels, notes = names_of(tmp_path, "val", class_names=NAMES)
    assert (names, labels, notes) == (NAMES, [1, 6, 9], [])
    fill(tmp_path, "val/yak/1.png")
    with pytest.raises(OmpqError, match=r"class yak is none of the network's 10 \(ape, bee, .*…\)"):
        names_of(tmp_path, "val", class_names=NAMES)


def test_classes_of_train_alone_need_not_be_the_networks(tmp_path: Path) -> None:
    fill(tmp_path, "train/bee/1.png", "train/yak/1.png", "val/bee/1.png")
    assert names_of(tmp_path, "val", class_names=NAMES)[1] == [1]


def test_names_of_data_in_memory_are_matched_where_they_are_the_same() -> None:
    digits = open_digits(None, "val")
    backwards = match_classes(digits, digits.class_names[::-1])
    assert (backwards.labels == 9 - digits.labels).all()
    otherwise = match_classes(digits, NAMES)
    assert (otherwise.labels == digits.labels).all() and "other names" in otherwise.notes[0]


@pytest.mark.parametrize("place", ["", "output", "train"])
def test_pictures_of_ours_are_no_data(tmp_path: Path, place: str) -> None:
    fill(tmp_path, "train/a/1.png", "train/a/2.png")
    with figure(tmp_path / place / "bit_config.png", 2, 1) as drawn:
        drawn.subplots()
    (tmp_path / place / "bit_config.json").write_text("{}")
    split = open_images(tmp_path)
    assert [path.name for path in split.paths] == ["1.png", "2.png"]
    (note,) = split.notes
    assert note.startswith("left out, since this toolkit has drawn it: ")
    assert note.endswith(str(Path(place) / "bit_config.png"))


def test_pictures_of_earlier_versions_are_told_by_the_file_beside_them(tmp_path: Path) -> None:
    fill(tmp_path, "training.png", "mine.png", "sub/training.png")
    (tmp_path / "results.json").write_text("{}")
    names = [str(path.relative_to(tmp_path)) for path in open_images(tmp_path).paths]
    assert names == ["mine.png", "sub/training.png"]


@pytest.mark.parametrize(
    "text",
    [
        "d\nc\nb\n",
        "d 0\nc 1\nb 2\n",
        "b 2\nc 1\nd 0\n",
        "2 b\n1 c\n0 d\n",
        "3: b\n2: c\n1: d\n",
        "b,2\nd,0\nc,1\n",
        "# the classes\nd\n\nc\nb\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_class_files_of_every_form(tmp_path: Path, text: str, encoding: str) -> None:
    fill(tmp_path, "train/b/1.png", "train/c/1.png", "train/d/1.png")
    (tmp_path / "classes.txt").write_bytes(text.replace("\n", "\r\n").encode(encoding))
    assert names_of(tmp_path, "train") == (("d", "c", "b"), [0, 1, 2], [])


def test_a_folder_whose_name_begins_like_a_comment(tmp_path: Path) -> None:
    fill(tmp_path, "train/b/1.png", "train/#1/1.png")
    (tmp_path / "classes.txt").write_text("b\n#1\n")
    assert names_of(tmp_path, "train")[0] == ("b", "#1")


def test_names_with_a_number_in_them_are_names(tmp_path: Path) -> None:
    fill(tmp_path, "train/type 0/1.png", "train/type 1/1.png")
    (tmp_path / "classes.txt").write_text("type 1\ntype 0\n")
    assert names_of(tmp_path, "train")[0] == ("type 1", "type 0")


def test_folders_called_by_numbers_say_their_order(tmp_path: Path) -> None:
    fill(tmp_path, *(f"train/{number}/1.png" for number in range(11)))
    names, _, (note,) = names_of(tmp_path, "train")
    assert names[:3] == ("0", "1", "10")
    assert "10 comes before 2" in note
    fill(tmp_path, *(f"val/{number:02}/1.png" for number in range(11)))
    (tmp_path / "train").rename(tmp_path / "former")
    assert names_of(tmp_path, "val")[2] == []


def test_links_to_a_folder_above_are_not_followed(tmp_path: Path) -> None:
    fill(tmp_path, "train/b/1.png", "train/c/1.png", "elsewhere/2.png")
    (tmp_path / "train/b/up").symlink_to(tmp_path / "train")
    (tmp_path / "train/b/self").symlink_to("self")
    (tmp_path / "train/c/more").symlink_to(tmp_path / "elsewhere")
    names, labels, notes = names_of(tmp_path, "train")
    assert (names, labels) == (("b", "c"), [0, 1, 1])
    assert notes == [
        "not followed, since these links lead to a folder that they lie in: train/b/up"
    ]


def test_pictures_of_formats_that_are_not_read_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "train/b/1.png", "train/c/1.png")
    (tmp_path / "train/b/2.HEIC").write_bytes(b"x")
    (tmp_path / "train/b/boxes.xml").write_bytes(b"x")
    (tmp_path / "train/c/1.png").rename(tmp_path / "train/c/1.jfif")
    names, labels, notes = names_of(tmp_path, "train")
    assert (names, labels) == (("b", "c"), [0, 1])
    assert notes == ["left out, since this format is not read; convert it to PNG: train/b/2.HEIC"]
