"""Files are written whole or not at all, and nothing that a user has is lost."""

from __future__ import annotations

import json
import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import ROOT, run_command

from ompq.errors import OmpqError
from ompq.files import (
    atomic_path,
    check_writable,
    checksum,
    load_tensors,
    lock_folder,
    save_state,
    save_tensors,
    set_aside,
    temporary_folder,
    write_json,
    write_text,
)

as_root = os.geteuid() == 0
# Writes one file of every kind into a folder, with room for few bytes, and tells what it hears.
CROWDED = """
import resource, sys
from pathlib import Path
import torch
from ompq.errors import OmpqError
from ompq.files import save_state, save_tensors, write_text
from ompq.plots import figure
folder, value = Path(sys.argv[1]), {"a": torch.ones(100_000)}

def draw():
    with figure(folder / "d.png", 4, 3) as drawn:
        drawn.text(0, 0, "new")

resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
for write in (
    lambda: save_state(folder / "a.pth.tar", value),
    lambda: save_tensors(folder / "b.safetensors", value, None),
    lambda: write_text(folder / "c.json", "new" * 10_000),
    draw,
):
    try:
        write()
    except OmpqError as error:
        print(error)
"""


class TestAtomicPath:
    def test_the_file_is_there_when_the_body_has_ended(self, tmp_path: Path) -> None:
        file = tmp_path / "new" / "folder" / "a.txt"
        with atomic_path(file) as temporary:
            temporary.write_text("new")
            assert temporary.suffix == ".txt" and not file.exists()
        assert file.read_text() == "new"
        assert [entry.name for entry in file.parent.iterdir()] == ["a.txt"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_a_failure_leaves_the_old_file(
        self, tmp_path: Path, error: type[BaseException]
    ) -> None:
        file = tmp_path / "a.txt"
        file.write_text("old")
        with pytest.raises(error), atomic_path(file) as temporary:
            temporary.write_text("half")
            raise error
        assert file.read_text() == "old"
        assert list(tmp_path.iterdir()) == [file]

    def test_a_full_disk_is_one_line(self, tmp_path: Path) -> None:
        file = tmp_path / "a.txt"
        file.write_text("old")
        with (
            pytest.raises(OmpqError, match=r"a\.txt: No space left on device; what stood there"),
            atomic_path(file),
        ):
            raise OSError(28, "No space left on device")
        assert file.read_text() == "old"

    def test_a_folder_that_is_a_file_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OmpqError, match=r"cannot write .*a\.txt.*choose another folder"):
            write_text(tmp_path / "file" / "a.txt", "")

    def test_the_rights_are_those_of_any_file(self, tmp_path: Path) -> None:
        write_text(tmp_path / "ours", "")
        (tmp_path / "any").touch()
        ours, other = (stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("ours", "any"))
        assert ours == other

    def test_temporaries_of_dead_processes_are_cleared(self, tmp_path: Path) -> None:
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        begin = f".a-{platform.node()}-"
        orphan = tmp_path / f"{begin}{dead.pid}-x1y2.txt"
        # Whatever is of a living process, another file or no process at all stays.
        others = [
            tmp_path / f"{begin}{os.getppid()}-x1y2.txt",
            tmp_path / f".b-{platform.node()}-{dead.pid}-x1y2.txt",
            tmp_path / f"{begin}{dead.pid}-x1y2.json",
            tmp_path / f"{begin}notes.txt",
        ]
        for file in (orphan, *others):
            file.touch()
        write_text(tmp_path / "a.txt", "new")
        assert set(tmp_path.iterdir()) == {tmp_path / "a.txt", *others}


def test_a_temporary_folder_is_gone_at_the_end_and_so_are_those_of_killed_processes(
    tmp_path: Path,
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    begin = f".made-{platform.node()}-"
    orphan, others = tmp_path / f"{begin}{dead.pid}-x1", tmp_path / f"{begin}{os.getppid()}-x1"
    for folder in (orphan, others):
        folder.mkdir()
        (folder / "part").write_text("half")
    with temporary_folder(tmp_path / "made") as made:
        (made / "part").write_text("whole")
        assert made.parent == tmp_path and not orphan.exists()
    assert list(tmp_path.iterdir()) == [others]


class TestSetAside:
    def test_folders_are_numbered(self, tmp_path: Path) -> None:
        for number in (1, 2):
            (tmp_path / "a.json").write_text(str(number))
            (tmp_path / "b.json").touch()
            aside = set_aside(tmp_path, ["a.json", "b.json", "c.json"])
            assert aside == tmp_path / f"earlier-{number}"
            assert (aside / "a.json").read_text() == str(number)
            assert {entry.name for entry in aside.iterdir()} == {"a.json", "b.json"}
        assert {entry.name for entry in tmp_path.iterdir()} == {"earlier-1", "earlier-2"}

    def test_nothing_to_move_makes_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "other").touch()
        assert set_aside(tmp_path, ["a.json"]) is None
        assert [entry.name for entry in tmp_path.iterdir()] == ["other"]


class TestCheckWritable:
    def test_a_new_folder_is_created_and_left_empty(self, tmp_path: Path) -> None:
        check_writable(tmp_path / "a" / "b")
        assert list((tmp_path / "a" / "b").iterdir()) == []

    def test_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(OmpqError, match="file is a file; give `output_dir` a folder"):
            check_writable(tmp_path / "file")
        with pytest.raises(OmpqError, match=r"cannot write to .*give another `output_dir`"):
            check_writable(tmp_path / "file" / "below")
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.skipif(as_root, reason="root may write anywhere")
    def test_a_folder_without_rights_is_refused(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o555)
        with pytest.raises(OmpqError, match=r"cannot write to .*Permission denied"):
            check_writable(tmp_path)


def test_json_comes_back_in_the_order_of_its_keys(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": {"Größe": "×"}}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert list(json.loads(text)) == ["b", "a"] and text.endswith("}\n")


def test_json_without_a_standard_form_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


class TestTensors:
    def test_tensors_and_description_come_back(self, tmp_path: Path) -> None:
        whole = torch.arange(12.0).reshape(3, 4)
        # The format itself refuses tensors that share memory or are not contiguous.
        tensors = {"whole": whole, "row": whole[1], "turned": whole.T}
        save_tensors(tmp_path / "a.safetensors", tensors, {"bits": [4, 8]})
        loaded, description = load_tensors(tmp_path / "a.safetensors")
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[name], value) for name, value in tensors.items())
        assert description == {"bits": [4, 8]}

    @pytest.mark.parametrize("kept", [0, 5, -3])
    def test_a_damaged_file_is_named(self, tmp_path: Path, kept: int) -> None:
        file = tmp_path / "a.safetensors"
        save_tensors(file, {"a": torch.ones(8)}, None)
        file.write_bytes(file.read_bytes()[:kept])
        with pytest.raises(OmpqError, match=r"a\.safetensors is damaged or no safetensors file"):
            load_tensors(file)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(OmpqError, match=r"nowhere\.safetensors is damaged or no"):
            load_tensors(tmp_path / "nowhere.safetensors")


def test_a_state_comes_back_without_running_code(tmp_path: Path) -> None:
    state = {"epoch": 3, "weights": {"a": torch.ones(2)}, "names": ["x", "y"]}
    save_state(tmp_path / "a.pth", state)
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    assert loaded["epoch"] == 3 and loaded["names"] == ["x", "y"]
    assert torch.equal(loaded["weights"]["a"], torch.ones(2))


def test_a_state_may_have_a_name_without_a_suffix(tmp_path: Path) -> None:
    for name in ("state", ".state"):
        save_state(tmp_path / name, {"a": torch.ones(2)})
        assert torch.equal(torch.load(tmp_path / name, weights_only=True)["a"], torch.ones(2))
    assert sorted(file.name for file in tmp_path.iterdir()) == [".state", "state"]


def test_whatever_is_written_without_room_is_one_line_and_leaves_what_was_there(
    tmp_path: Path,
) -> None:
    names = ("a.pth.tar", "b.safetensors", "c.json", "d.png")
    for name in names:
        (tmp_path / name).write_text("old")
    run = run_command([sys.executable, "-c", CROWDED, str(tmp_path)], ROOT)
    assert run.stderr == ""
    assert run.stdout.splitlines() == [
        f"cannot write {tmp_path / name}: File too large; what stood there is as it was"
        for name in names
    ]
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys(
        names, "old"
    )


class TestLockFolder:
    def test_it_is_held_once_and_released_whatever_happens(self, tmp_path: Path) -> None:
        folder = tmp_path / "new"
        for error in (ValueError, KeyboardInterrupt):
            with pytest.raises(error), lock_folder(folder):
                with (
                    pytest.raises(OmpqError, match=f"process {os.getpid()} on .*another `folder`"),
                    lock_folder(folder, "folder"),
                ):
                    pass
                raise error
        with lock_folder(folder):
            pass
        assert list(folder.iterdir()) == []

    def test_what_a_dead_process_left_locks_nothing(self, tmp_path: Path) -> None:
        with lock_folder(tmp_path):
            (file,) = tmp_path.iterdir()
            text = file.read_text()
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        file.write_text(text.replace(str(os.getpid()), str(dead.pid)))
        with lock_folder(tmp_path):
            assert file.read_text() == text
        assert not file.exists()

    def test_a_file_system_without_locks_goes_by_the_process(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr("fcntl.flock", refuse)
        with lock_folder(tmp_path):
            (file,) = tmp_path.iterdir()
            text = file.read_text()
        file.write_text(text.replace(str(os.getpid()), str(os.getppid())))
        with pytest.raises(OmpqError, match=f"in use .*process {os.getppid()}"):
            lock_folder(tmp_path).__enter__()
        file.write_text(text.replace(str(os.getpid()), str(2**22 + 1)))
        with lock_folder(tmp_path):
            assert file.read_text() == text

    def test_of_several_processes_the_first_holds_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RANK", "1")
        with lock_folder(tmp_path):
            assert list(tmp_path.iterdir()) == []


def test_a_checksum_is_of_values_in_their_order() -> None:
    values = [torch.arange(3.0), torch.tensor(4, dtype=torch.int64)]
    assert checksum(values) == checksum([value.clone() for value in values])
    assert checksum(values) != checksum(values[::-1])
    assert checksum(values) != checksum([values[0] + 1e-6, values[1]])
