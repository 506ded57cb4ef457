"""What is exported takes its place; nothing that a user has is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from ompq.errors import OmpqError
from ompq.export.places import put_into_place


def make_folder(folder: Path, *names: str, text: str = "new") -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "room" / "web", "index.html", "model.onnx")


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    made, place = tmp_path / "made", tmp_path / "place"
    made.write_text("new")
    place.write_text("old")
    put_into_place(made, place)
    assert place.read_text() == "new" and not made.exists()


@pytest.mark.parametrize("litter", [(), (".DS_Store",)])
def test_a_folder_takes_the_place_of_an_earlier_one_as_a_whole(
    litter: tuple[str, ...], made: Path, tmp_path: Path
) -> None:
    place = make_folder(tmp_path / "web", "index.html", "model.onnx", *litter, text="old")
    put_into_place(made, place)
    assert sorted(file.name for file in place.iterdir()) == ["index.html", "model.onnx"]
    assert all(file.read_text() == "new" for file in place.iterdir())
    assert not made.exists()


def test_a_folder_takes_an_empty_place(made: Path, tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    put_into_place(made, tmp_path / "web")
    assert (tmp_path / "web" / "index.html").read_text() == "new"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("index.html", "model.onnx", "notes.txt"), "holds notes.txt"),
        (("index.html",), "lacks model.onnx"),
        (("photo.jpg",), "index.html"),
    ],
)
def test_a_folder_of_the_users_own_is_left_alone(
    names: tuple[str, ...], message: str, made: Path, tmp_path: Path
) -> None:
    place = make_folder(tmp_path / "web", *names, text="old")
    with pytest.raises(OmpqError, match=message) as raised:
        put_into_place(made, place)
    assert str(place) in str(raised.value) and "\n" not in str(raised.value)
    assert sorted(file.name for file in place.iterdir()) == sorted(names)
    assert all(file.read_text() == "old" for file in place.iterdir())


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_what_is_no_folder_is_left_alone(kind: str, made: Path, tmp_path: Path) -> None:
    place, elsewhere = tmp_path / "web", tmp_path / "elsewhere"
    if kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(elsewhere)
    if kind == "link":
        elsewhere.mkdir()
    with pytest.raises(OmpqError, match="is no folder"):
        put_into_place(made, place)
    assert place.is_symlink() == (kind != "file") and made.is_dir()


def test_where_the_new_folder_cannot_come_the_earlier_one_comes_back(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_folder(tmp_path / "web", "index.html", "model.onnx", text="old")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self == made:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"):
        put_into_place(made, place)
    assert (place / "index.html").read_text() == "old"
