"""The data sets whose images have one native size: digits, Fashion-MNIST, CIFAR-10."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from ompq.data import DATASETS, make_loader, preprocess_for
from ompq.data.datasets.cifar10 import open_cifar10
from ompq.data.datasets.digits import open_digits
from ompq.data.datasets.fashion_mnist import DEBIAN_FOLDER, open_fashion_mnist, read_idx
from ompq.data.datasets.splits import TensorSplit
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess

needs_fashion_mnist = pytest.mark.skipif(
    not DEBIAN_FOLDER.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed"
)


def _mean_and_std(split: TensorSplit) -> tuple[float, float]:
    values = split.images.double() / split.white
    return values.mean().item(), values.std(correction=0).item()


def test_digits_constants_are_those_of_its_training_images() -> None:
    preprocess = DATASETS["digits"].preprocess
    mean, std = _mean_and_std(open_digits(None, "train"))
    assert preprocess.mean == pytest.approx([mean] * 3, abs=5e-5)
    assert preprocess.std == pytest.approx([std] * 3, abs=5e-5)


def test_digits_split_is_whole_stratified_and_fixed() -> None:
    train, val = (open_digits(None, split) for split in ("train", "val"))
    assert (len(train.labels), len(val.labels)) == (1438, 359)
    both = torch.cat([train.images, val.images]).flatten(1)
    assert both.unique(dim=0).shape[0] == 1797
    share = val.labels.bincount() / (train.labels.bincount() + val.labels.bincount())
    assert ((share - 0.2).abs() < 0.01).all()
    assert val.labels[:8].tolist() == open_digits(None, "val").labels[:8].tolist()


def test_native_images_come_in_the_networks_channels() -> None:
    grey = Preprocess(mean=(0.5,), std=(0.5,))
    assert preprocess_for("digits", grey) == Preprocess(8, 8, (0.3058,), (0.3764,))
    assert preprocess_for("cifar10", grey).channels == 1


def test_digits_batches() -> None:
    preprocess = preprocess_for("digits", Preprocess())
    loader = make_loader("digits", None, "train", preprocess, 100)
    batches = list(loader)
    images = torch.cat([images for images, _ in batches])
    assert len(loader) == len(batches) == 15
    assert images.shape == (1438, 3, 8, 8) and images.dtype == torch.float32
    assert batches[0][1].dtype == torch.int64
    assert images.mean().abs() < 1e-3 and (images.std() - 1).abs() < 1e-3


@needs_fashion_mnist
def test_fashion_mnist_is_all_there_and_its_constants_are_right() -> None:
    train, val = (open_fashion_mnist(None, split) for split in ("train", "val"))
    assert train.images.shape == (60000, 1, 28, 28) and len(val.labels) == 10000
    assert train.labels.bincount().tolist() == [6000] * 10
    preprocess = DATASETS["fashion_mnist"].preprocess
    assert _mean_and_std(train) == pytest.approx((preprocess.mean[0], preprocess.std[0]), abs=5e-5)


@needs_fashion_mnist
def test_fashion_mnist_batches_are_framed_and_in_three_channels() -> None:
    preprocess = preprocess_for("fashion_mnist", Preprocess())
    images, _ = next(iter(make_loader("fashion_mnist", None, "val", preprocess, 50)))
    black = (0 - 0.2860) / 0.3530
    assert images.shape == (50, 3, 32, 32)
    assert torch.equal(images[:, 0], images[:, 2])
    assert torch.allclose(images[:, :, :2], torch.tensor(black))
    assert torch.allclose(images[:, :, :, -2:], torch.tensor(black))


def _idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
    return header + values.tobytes()


def _write_fashion_mnist(folder: Path, packed: bool) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        files = {"images-idx3": images, "labels-idx1": np.arange(6, dtype=np.uint8)}
        for kind, values in files.items():
            path = folder / f"{prefix}-{kind}-ubyte"
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(_idx(values)))
            else:
                path.write_bytes(_idx(values))
    return images


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", [".", "FashionMNIST/raw"])
def test_idx_files_are_read_plain_or_packed(tmp_path: Path, packed: bool, place: str) -> None:
    images = _write_fashion_mnist(tmp_path / place, packed)
    split = open_fashion_mnist(tmp_path, "val")
    assert np.array_equal(split.images[:, 0].numpy(), images)
    assert split.labels.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged: this is no idx file"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01aaaa", "is damaged: this is no idx file"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x09abc", "is damaged: .*reshape"),
        (b"\x00\x00\x08\x03\x00\x00", "is damaged"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "plain").write_bytes(content)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(content))
    for name in ("plain", "packed"):
        with pytest.raises(OmpqError, match=f"{name} {message}"):
            read_idx(tmp_path / name)


def test_cut_gzip_and_missing_files_are_named(tmp_path: Path) -> None:
    _write_fashion_mnist(tmp_path, packed=True)
    packed = tmp_path / "train-images-idx3-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:200])
    with pytest.raises(OmpqError, match="train-images-idx3-ubyte is damaged"):
        open_fashion_mnist(tmp_path, "train")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(OmpqError, match="t10k-labels-idx1-ubyte is missing"):
        open_fashion_mnist(tmp_path, "val")


def test_idx_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    _write_fashion_mnist(tmp_path, packed=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(_idx(np.zeros(5, dtype=np.uint8)))
    with pytest.raises(OmpqError, match=r"train-labels \(5,\); expected n×28×28 and n"):
        open_fashion_mnist(tmp_path, "train")


def _no_network(*arguments: object, **options: object) -> None:
    raise OSError("no route to host")


@pytest.mark.parametrize(
    ("dataset", "torchvision_name", "words"),
    [
        ("fashion_mnist", "FashionMNIST", "Debian package dataset-fashion-mnist"),
        ("cifar10", "CIFAR10", "cifar-10-batches-py"),
    ],
)
def test_without_network_the_error_says_what_to_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dataset: str,
    torchvision_name: str,
    words: str,
) -> None:
    monkeypatch.setattr(f"torchvision.datasets.{torchvision_name}", _no_network)
    with pytest.raises(OmpqError, match=f"cannot be downloaded.*{words}"):
        make_loader(dataset, tmp_path, "train", Preprocess(), 4)
    assert list(tmp_path.iterdir()) == []


def test_a_download_arrives_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(root: str, download: bool) -> None:
        _write_fashion_mnist(Path(root) / "FashionMNIST" / "raw", packed=True)

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", fetch)
    assert len(open_fashion_mnist(tmp_path / "new", "train").labels) == 6
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["FashionMNIST"]


@pytest.fixture
def cifar_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files in CIFAR-10's format with two images each; torchvision is told their checksums."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    sums = {}
    for index, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        data = np.full((2, 3072), index, dtype=np.uint8)
        content = pickle.dumps({"data": data, "labels": [index, 9]})
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    meta = pickle.dumps({"label_names": [str(label) for label in range(10)]})
    (folder / "batches.meta").write_bytes(meta)
    test = [["test_batch", sums.pop("test_batch")]]
    monkeypatch.setattr(CIFAR10, "train_list", [list(item) for item in sums.items()])
    monkeypatch.setattr(CIFAR10, "test_list", test)
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": hashlib.md5(meta).hexdigest()})
    return tmp_path


def test_cifar10_is_read_from_its_folder_or_the_one_above(cifar_folder: Path) -> None:
    preprocess = preprocess_for("cifar10", Preprocess())
    for root in (cifar_folder, cifar_folder / "cifar-10-batches-py"):
        images, labels = next(iter(make_loader("cifar10", root, "train", preprocess, 20)))
        assert images.shape == (10, 3, 32, 32)
        assert labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert images[2, 1, 0, 0].item() == pytest.approx((1 / 255 - 0.4822) / 0.2435)


def _write_binary_version(folder: Path) -> None:
    """Write what `cifar_folder` holds as the official binary version lays it out."""
    folder.mkdir()
    for index, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        rows = np.full((2, 3073), index, dtype=np.uint8)
        rows[:, 0] = [index, 9]
        rows[:, 1:1025] = np.arange(1024) % 256  # red is stored first
        (folder / f"{name}.bin").write_bytes(rows.tobytes())


def test_the_binary_version_of_cifar10_is_read(tmp_path: Path) -> None:
    _write_binary_version(tmp_path / "cifar-10-batches-bin")
    for root in (tmp_path, tmp_path / "cifar-10-batches-bin"):
        train, val = (open_cifar10(root, split) for split in ("train", "val"))
        assert train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
        assert val.labels.tolist() == [5, 9] and val.images.shape == (2, 3, 32, 32)
        assert val.images[0, 0, 1].tolist() == list(range(32, 64))
        assert (val.images[0, 1:] == 5).all() and val.class_names[9] == "truck"


def test_both_versions_of_cifar10_give_one_data_set(cifar_folder: Path) -> None:
    binary = cifar_folder / "elsewhere"
    binary.mkdir()
    for file in (cifar_folder / "cifar-10-batches-py").glob("*_batch*"):
        held = pickle.loads(file.read_bytes())
        rows = np.concatenate([np.uint8(held["labels"])[:, None], held["data"]], axis=1)
        (binary / f"{file.name}.bin").write_bytes(rows.tobytes())
    for split in ("train", "val"):
        one, other = open_cifar10(cifar_folder, split), open_cifar10(binary, split)
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes are no whole number of images of 3073"),
        (bytes(3072), "3072 bytes are no whole number of images"),
        (bytes([10]) + bytes(3072), "it has the class 10, and there are 10"),
    ],
)
def test_a_damaged_binary_version_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    _write_binary_version(folder)
    (folder / "data_batch_2.bin").write_bytes(content)
    with pytest.raises(OmpqError, match=f"data_batch_2.bin is damaged.*{message}"):
        open_cifar10(tmp_path, "train")
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(OmpqError, match="bin is missing"):
        open_cifar10(tmp_path, "train")


def test_damaged_cifar10_is_named(cifar_folder: Path) -> None:
    (cifar_folder / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"x")
    with pytest.raises(OmpqError, match="cifar-10-batches-py is incomplete or damaged"):
        make_loader("cifar10", cifar_folder, "val", Preprocess(), 4)
