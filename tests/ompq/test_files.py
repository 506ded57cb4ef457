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

from ompq.errors import OmpqError
from ompq.files import (
    atomic_path,
    check_writable,
    load_tensors,
    save_state,
    save_tensors,
    set_aside,
    write_json,
    write_text,
)

as_root = os.geteuid() == 0


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
        with pytest.raises(OmpqError, match="cannot write to .*give another `output_dir`"):
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
