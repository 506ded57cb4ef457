"""Telling files apart by what is in them: weights by name, or something else that has a name."""

from __future__ import annotations

import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

_HEAD = 512
_SHOWN = 3
_SAVE = "torch.save(NETWORK.state_dict(), 'weights.pth')"
_CONVERT = "give the PyTorch weights that it was made from, or convert them to a state_dict"
_ARRAYS = (
    "save them under the network's own names, "
    "torch.save({name: torch.from_numpy(array), …}, 'weights.pth')"
)
# A pickle opens with its protocol; what torch.save writes without an archive, with this number.
_PICKLES = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# First bytes of files of other programs.
_MAGIC = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write (.h5)", _CONVERT),
    (b"\x93NUMPY", "one NumPy array (.npy)", _ARRAYS),
    (b"GGUF", "a GGUF file, as llama.cpp reads", _CONVERT),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "fetch it with git lfs pull",
    ),
    (b"<!doctype html", "a web page, not a weight file", "download the file itself"),
    (b"<html", "a web page, not a weight file", "download the file itself"),
    (b"\x1f\x8b", "a gzip archive", "unpack it and give the file inside"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it and give the file inside"),
)
# Formats without first bytes of their own.
_SUFFIXES = {
    ".onnx": ("an ONNX network", _CONVERT),
    ".pb": ("a TensorFlow graph (.pb)", _CONVERT),
    ".index": ("the index of a TensorFlow checkpoint", _CONVERT),
    ".tflite": ("a TensorFlow Lite network", _CONVERT),
    ".mlmodel": ("a Core ML network", _CONVERT),
    ".msgpack": ("a Flax checkpoint (.msgpack)", _CONVERT),
    ".pdparams": ("a PaddlePaddle checkpoint", _CONVERT),
    ".engine": ("a TensorRT engine", _CONVERT),
}


def describe_other_format(file: Path) -> str:
    """Describe a file that holds something else than weights by name, and what to do instead.

    Args:
        file: Path of a readable file.

    Returns:
        "a TorchScript archive …; give …", or an empty text where the file may be a weight file.
    """
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
    if head.startswith(b"PK"):
        found = _describe_zip(file)
    elif _is_plain_tar(file, head):
        found = ("a tar archive", "unpack it and give the file inside")
    elif _is_plain_pickle(file, head):
        found = (
            "a plain pickle (pickle.dump), which is never run",
            f"load it where it was written, and save its weights, {_SAVE}",
        )
    else:
        found = _describe_head(head, file.suffix.lower())
    return f"{found[0]}; {found[1]}" if found[0] else ""


def is_safetensors(file: Path) -> bool:
    """Tell whether a file opens as safetensors do: the length of a JSON header, and that header."""
    with file.open("rb") as opened:
        head = opened.read(9)
        length = int.from_bytes(head[:8], "little")
        if head[8:] != b"{" or length + 8 > file.stat().st_size:
            return False
        opened.seek(8)
        try:
            return isinstance(json.loads(opened.read(length)), dict)
        except ValueError:
            return False


def _describe_zip(file: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return "", ""
    # PyTorch puts everything into one folder, called like the file.
    inside = {name.partition("/")[2] or name for name in names}
    if "constants.pkl" in inside and "data.pkl" in inside:
        return (
            "a TorchScript archive (torch.jit.save), not weights by name",
            f"give its weights, torch.save(torch.jit.load({file.name!r}).state_dict(), "
            "'weights.pth')",
        )
    if inside & {"models/model.json", "serialized_exported_program.json"} or (
        "archive_format" in inside
    ):
        return (
            "an exported program (torch.export.save), not weights by name",
            f"give its weights, torch.save(torch.export.load({file.name!r}).state_dict, "
            "'weights.pth')",
        )
    if ".data/extern_modules" in inside:
        return "a torch.package archive", f"save the weights of the network in it, {_SAVE}"
    if "data.pkl" in inside:
        return "", ""
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays (.npz)", _ARRAYS
    if "model.weights.h5" in inside:
        return "a Keras network (.keras)", _CONVERT
    shown = ", ".join(names[:_SHOWN]) + (", …" if names[_SHOWN:] else "")
    return (
        f"a zip archive of other files ({shown or 'empty'})",
        "unpack it and give the file inside",
    )


def _describe_head(head: bytes, suffix: str) -> tuple[str, str]:
    lower = head.lstrip().lower()
    for magic, what, advice in _MAGIC:
        if head.startswith(magic) or lower.startswith(magic):
            return what, advice
    if head[4:8] == b"TFL3":
        return _SUFFIXES[".tflite"]
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    # Protocol buffers: field 1, the version, then field 2, the length and name of the producer.
    if head[:1] == b"\x08" and head[2:3] == b"\x12" and head[4 : 4 + head[3]].isascii():
        return _SUFFIXES[".onnx"]
    return "", ""


def _is_plain_pickle(file: Path, head: bytes) -> bool:
    """Tell whether a file is one whole pickle, and not several, as torch.save wrote them once."""
    if not head.startswith(_PICKLES) or _LEGACY_MAGIC in head[:32] or is_safetensors(file):
        return False
    with file.open("rb") as opened:
        opened.seek(-1, os.SEEK_END)
        return opened.read() == pickle.STOP


def _is_plain_tar(file: Path, head: bytes) -> bool:
    """Tell whether a file is a tar archive; PyTorch's first versions wrote such, of known names."""
    if head[257:262] != b"ustar":
        return False
    try:
        with tarfile.open(file) as archive:
            return not {"pickle", "storages", "tensors"} & set(archive.getnames())
    except tarfile.TarError:
        return False
