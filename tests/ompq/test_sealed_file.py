"""Files with a checksum: what is read back, and what is noticed."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ompq.errors import OmpqError
from ompq.files import load_tensors
from ompq.sealed_file import is_sealed, load_content, save_sealed

TENSORS = {
    "b": torch.arange(7, dtype=torch.uint8),
    "a.x": torch.tensor(0.5),
    "c": torch.tensor([[1, -2], [3, 4]]),
}
DESCRIPTION = {"format": "x/1", "name": 'a "quoted" \\ größe', "numbers": [1, 2.5, None]}


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("sealed") / "file.safetensors"
    save_sealed(file, TENSORS, DESCRIPTION)
    return file.read_bytes()


def test_a_file_is_read_back(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    file.write_bytes(content)
    found = load_content(file)
    assert is_sealed(found.content)
    assert found.tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert found.tensors[name].dtype == value.dtype
        assert torch.equal(found.tensors[name], value)
    checksum = found.description.pop("checksum")
    assert found.description == DESCRIPTION
    zeroed = content.replace(checksum.encode(), b"00000000", 1)
    assert f"{zlib.crc32(zeroed):08x}" == checksum
    # Any reader of safetensors files reads it.
    assert load_tensors(file)[1] == {"checksum": checksum, **DESCRIPTION}
    again = tmp_path / "again.safetensors"
    save_sealed(again, found.tensors, found.description)
    assert again.read_bytes() == content


@given(st.data())
def test_every_flipped_bit_is_noticed(content: bytes, data: st.DataObject) -> None:
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    harmed = bytearray(content)
    harmed[place] ^= 1 << bit
    assert is_sealed(content) and not is_sealed(bytes(harmed))


@given(st.data())
def test_no_part_of_a_file_is_whole(content: bytes, data: st.DataObject) -> None:
    assert not is_sealed(content[: data.draw(st.integers(0, len(content) - 1))])


@pytest.mark.parametrize("kept", [0, 5, 8, 60, -1])
def test_a_truncated_file_is_refused_in_one_line(kept: int, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    file.write_bytes(content[:kept])
    with pytest.raises(OmpqError, match=r"is damaged: .*; write it again$") as refused:
        load_content(file)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text", [b"", b'{\n  "arguments": {}\n}', b"PK\x03\x04 and so on", b"notes"]
)
def test_what_is_of_another_kind_is_not_called_damaged(text: bytes, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_bytes(text)
    with pytest.raises(OmpqError, match=r"results.json is no \.safetensors file; give") as refused:
        load_content(file)
    assert "\n" not in str(refused.value)


def test_a_damaged_file_of_another_name_is_damaged(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "network"
    file.write_bytes(content[:-1])
    with pytest.raises(OmpqError, match="is damaged"):
        load_content(file)


def test_a_file_without_a_checksum_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    save_file(TENSORS, file)
    found = load_content(file)
    assert found.description is None and not is_sealed(found.content)
    assert torch.equal(found.tensors["c"], TENSORS["c"])


def test_what_cannot_be_read_or_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OmpqError, match=r"cannot read .*directory"):
        load_content(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OmpqError, match="cannot write"):
        save_sealed(tmp_path / "file" / "below.safetensors", TENSORS, DESCRIPTION)
