"""A file that is no weight file is called what it is, in one line that says what to do instead."""

from __future__ import annotations

import io
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from ompq.errors import OmpqError
from ompq.zoo._checkpoint import read_state_dict

IMAGE = torch.zeros(1, 3, 8, 8)


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)).eval()


def refuse(file: Path) -> str:
    with pytest.raises(OmpqError) as caught:
        read_state_dict(file)
    text = str(caught.value)
    assert text.startswith(str(file))
    assert "\n" not in text
    return text


def _script(network: nn.Module, file: Path) -> None:
    torch.jit.script(network).save(str(file))


def _trace(network: nn.Module, file: Path) -> None:
    torch.jit.save(torch.jit.trace(network, IMAGE), str(file))


@pytest.mark.parametrize("save", [_script, _trace])
def test_torchscript(
    save: Callable[[nn.Module, Path], None], network: nn.Module, tmp_path: Path
) -> None:
    file = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(network, file)
        text = refuse(file)
        assert "is a TorchScript archive" in text
        # What the line advises gives weights that can be read.
        torch.save(torch.jit.load(str(file)).state_dict(), tmp_path / "weights.pth")
    assert "torch.jit.load('net.pt').state_dict()" in text
    assert read_state_dict(tmp_path / "weights.pth").keys() == network.state_dict().keys()


def test_an_exported_program(network: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(network, (IMAGE,)), file)
    text = refuse(file)
    assert "is an exported program (torch.export.save)" in text
    assert "torch.export.load('net.pt2').state_dict" in text


def test_an_archive_of_arrays(network: nn.Module, tmp_path: Path) -> None:
    arrays = {key: value.numpy() for key, value in network.state_dict().items()}
    np.savez(tmp_path / "net.npz", **arrays)
    assert "archive of NumPy arrays (.npz)" in refuse(tmp_path / "net.npz")
    np.save(tmp_path / "net.npy", arrays["0.bias"])
    assert "one NumPy array (.npy)" in refuse(tmp_path / "net.npy")


def test_onnx_under_any_name(network: nn.Module, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [value]
    )
    model = onnx.helper.make_model(graph, producer_name="pytorch")
    for name in ("net.onnx", "net.pth"):
        (tmp_path / name).write_bytes(model.SerializeToString())
        assert "an ONNX network" in refuse(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("net.h5", b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5 file, as Keras"),
        ("net.pth", b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5 file, as Keras"),
        ("net.tflite", b"\x1c\0\0\0TFL3" + bytes(64), "TensorFlow Lite"),
        ("saved_model.pb", b"\x08\x01\x12\x02", "TensorFlow graph"),
        ("net.pth", b"<!DOCTYPE html>\n<html>", "a web page"),
        ("net.pth", b"\n <html lang='en'>", "a web page"),
        (
            "net.pth",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
            "Git LFS pointer.*git lfs pull",
        ),
        ("net.pth.gz", b"\x1f\x8b\x08" + bytes(32), "gzip archive"),
        ("net.pkl", pickle.dumps({"fc.weight": [1.0]}), "a plain pickle"),
        ("net.pth", pickle.dumps({"fc.weight": [1.0]}, protocol=2), "a plain pickle"),
    ],
)
def test_files_of_other_programs(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OmpqError, match=what):
        read_state_dict(tmp_path / name)


def test_archives_of_files(network: nn.Module, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    with zipfile.ZipFile(tmp_path / "net.zip", "w") as archive:
        archive.writestr("net.pth", buffer.getvalue())
    assert "zip archive of other files (net.pth)" in refuse(tmp_path / "net.zip")
    with tarfile.open(tmp_path / "net.pth.tar", "w") as tar:
        entry = tarfile.TarInfo("net.pth")
        entry.size = len(buffer.getvalue())
        tar.addfile(entry, io.BytesIO(buffer.getvalue()))
    assert "a tar archive" in refuse(tmp_path / "net.pth.tar")


def test_a_whole_network_is_no_weight_file(network: nn.Module, tmp_path: Path) -> None:
    for content in (network, {"model": network, "epoch": 3}, {"ema": network}):
        torch.save(content, tmp_path / "net.pt")
        text = refuse(tmp_path / "net.pt")
        assert "holds a whole network (torch.nn.modules.container.Sequential)" in text
        assert "torch.save(model.state_dict()" in text


def _header(metadata: dict[str, str], state: dict[str, torch.Tensor]) -> int:
    return int.from_bytes(save(state, metadata=metadata)[:8], "little")


def test_weights_are_read_whatever_their_name(network: nn.Module, tmp_path: Path) -> None:
    state = network.state_dict()
    save_file(state, tmp_path / "net.bin")
    torch.save(state, tmp_path / "net.h5")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(state, tmp_path / "net.safetensors")
    # A header of 1152 bytes begins like a pickle.
    length = next(n for n in range(1200) if _header({"x": "y" * n}, state) == 0x480)
    save_file(state, tmp_path / "pickle.bin", metadata={"x": "y" * length})
    for name in ("net.bin", "net.h5", "old.pth", "net.safetensors", "pickle.bin"):
        read = read_state_dict(tmp_path / name)
        assert all(read[key].equal(value) for key, value in state.items())
