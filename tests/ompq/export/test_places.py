"""What is exported takes its place; nothing that a user has is lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ompq.errors import OmpqError
from ompq.export.places import put_all_into_place


def make_folder(folder: Path, *names: str, text: str = "new") -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "room" / "web", "index.html", "model.onnx")


def test_files_take_empty_places(tmp_path: Path) -> None:
    room = make_folder(tmp_path / "room", "model.c", "model.h")
    put_all_into_place(room, tmp_path)
    assert (tmp_path / "model.c").read_text() == (tmp_path / "model.h").read_text() == "new"
    assert not list(room.iterdir())


@pytest.mark.parametrize("taken", ["model.c", "model.h"])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_no_export_wrote_stops_all_of_it(kind: str, taken: str, tmp_path: Path) -> None:
    room = make_folder(tmp_path / "room", "model.c", "model.h")
    place = tmp_path / taken
    if kind == "file":
        place.write_text("mine")
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OmpqError, match=taken):
        put_all_into_place(room, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["room", taken])
    assert kind != "file" or place.read_text() == "mine"


@pytest.mark.parametrize("litter", [(), (".DS_Store",)])
def test_a_folder_takes_the_place_of_an_earlier_one_as_a_whole(
    litter: tuple[str, ...], made: Path, tmp_path: Path
) -> None:
    place = make_folder(tmp_path / "web", "index.html", "model.onnx", *litter, text="old")
    put_all_into_place(made.parent, tmp_path)
    assert sorted(file.name for file in place.iterdir()) == ["index.html", "model.onnx"]
    assert all(file.read_text() == "new" for file in place.iterdir())
    assert not made.exists()


def test_a_folder_takes_an_empty_place(made: Path, tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    put_all_into_place(made.parent, tmp_path)
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
        put_all_into_place(made.parent, tmp_path)
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
        put_all_into_place(made.parent, tmp_path)
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
        put_all_into_place(made.parent, tmp_path)
    assert (place / "index.html").read_text() == "old"


def kill_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path], None]:
    """Return a function that puts a room's files into place, and is killed at a renaming."""

    def put(room: Path, folder: Path) -> None:
        replace, left = os.replace, number

        def die(old: Path, new: Path) -> None:
            nonlocal left
            if Path(old).parent == room:
                if not left:
                    raise KeyboardInterrupt
                left -= 1
            replace(old, new)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(os, "replace", die)
            put_all_into_place(room, folder)

    return put


NAMES = ("model.c", "model.h", "test_vectors.h")


@pytest.mark.parametrize("number", range(len(NAMES)))
def test_what_a_killed_export_left_is_replaced_by_the_next(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = kill_at(number, monkeypatch)
    for name in ("first", "second"):
        kill(make_folder(tmp_path / name, *NAMES, text=name), tmp_path)
    put_all_into_place(make_folder(tmp_path / "room", *NAMES), tmp_path)
    assert all((tmp_path / name).read_text() == "new" for name in NAMES)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(NAMES)


@pytest.mark.parametrize("record", [None, b"", b"[]", b"\xff"])
def test_what_was_changed_after_a_killed_export_is_not_replaced(
    record: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(2, monkeypatch)(make_folder(tmp_path / "killed", *NAMES), tmp_path)
    (held,) = tmp_path.glob(".*")
    if record is None:
        (tmp_path / "model.h").write_text("mine")
    else:
        held.write_bytes(record)
    before = (tmp_path / "model.h").read_text()
    with pytest.raises(OmpqError, match="no file that an export wrote"):
        put_all_into_place(make_folder(tmp_path / "room", *NAMES, text="newer"), tmp_path)
    assert (tmp_path / "model.h").read_text() == before
