from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ompq.data import load_calibration_file
from ompq.errors import OmpqError


def _write(path: Path, value: Any) -> Path:
    if path.suffix == ".npy":
        np.save(path, value, allow_pickle=True)
    else:
        torch.save(value, path)
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_numpy_floats_are_read(tmp_path: Path, dtype: str) -> None:
    values = np.linspace(-2, 2, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5).astype(dtype)
    images = load_calibration_file(_write(tmp_path / "images.npy", values))
    assert images.dtype == torch.float32
    assert np.array_equal(images.numpy(), values.astype(np.float32))


def test_tensors_are_read(tmp_path: Path) -> None:
    values = torch.randn(3, 3, 4, 4, requires_grad=True)
    images = load_calibration_file(_write(tmp_path / "images.pt", values))
    assert torch.equal(images, values.detach()) and not images.requires_grad


def _with_nan(*indices: int) -> torch.Tensor:
    images = torch.zeros(5, 3, 4, 4)
    images[list(indices), 1, 2, 3] = float("nan")
    return images


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3, 4, 4), "is 3×4×4; expected images n×3×H×W"),
        (torch.zeros(2, 4, 4, 3), "is 2×4×4×3; expected images n×3×H×W"),
        (torch.zeros(2, 3, 0, 4), "is 2×3×0×4; expected"),
        (torch.tensor(1.0), "is a single number; expected"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "is uint8; expected normalised images"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.complex64), "is complex64; expected normalised"),
        (torch.zeros(0, 3, 4, 4), "holds no image; give two or more"),
        (torch.zeros(1, 3, 4, 4), "holds a single image; give two or more"),
        (_with_nan(3, 4), "image 3 holds NaN or infinity"),
        (torch.full((2, 3, 4, 4), 1e300, dtype=torch.float64), "image 0 holds NaN or infinity"),
        ({"images": torch.zeros(2, 3, 4, 4)}, "holds a dict; save one tensor"),
        (Path("x"), "cannot be read; save one tensor with torch.save"),
    ],
)
def test_unusable_tensors_are_named(tmp_path: Path, value: Any, message: str) -> None:
    path = _write(tmp_path / "images.pt", value)
    with pytest.raises(OmpqError, match=f"`calibration_data` {path}:? {message}"):
        load_calibration_file(path)


@pytest.mark.parametrize(
    "value", [np.array([{}, {}], dtype=object), np.array(["a", "b"])], ids=["pickle", "text"]
)
def test_arrays_of_other_things_are_refused(tmp_path: Path, value: np.ndarray) -> None:
    with pytest.raises(OmpqError, match="cannot be read; save one tensor"):
        load_calibration_file(_write(tmp_path / "images.npy", value))


def _npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, images=np.zeros((2, 3, 4, 4)))
    return stream.getvalue()


@pytest.mark.parametrize("name", ["images.pt", "images.npy", "images.txt"])
@pytest.mark.parametrize("content", [b"", b"some text", b"\x93NUMPY\x01\x00", _npz()])
def test_files_of_another_kind_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OmpqError, match="cannot be read; save one tensor"):
        load_calibration_file(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OmpqError, match=r"nowhere\.pt: there is no such file"):
        load_calibration_file(tmp_path / "nowhere.pt")
