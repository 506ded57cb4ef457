from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import heed_interrupts

from ompq.data import Loader, make_loader
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess

DIGITS = Preprocess(8, 8, (0.0,) * 3, (1.0,) * 3)


def _digits(split: str = "train", batch_size: int = 64, **options: Any) -> Loader:
    return make_loader("digits", None, split, DIGITS, batch_size, **options)


def _join(loader: Loader) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([names for _, names in batches])


def _interleave(parts: list[torch.Tensor]) -> torch.Tensor:
    """The global order back from the shards of all ranks."""
    whole = torch.empty(sum(map(len, parts)), *parts[0].shape[1:], dtype=parts[0].dtype)
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 7), st.integers(1, 90), st.integers(0, 2**40))
def test_val_shards_are_the_whole_split_once(world: int, batch: int, seed: int) -> None:
    whole = _join(_digits("val", seed=seed))
    loaders = [
        _digits("val", batch, seed=seed, rank=rank, world_size=world) for rank in range(world)
    ]
    parts = [_join(loader) for loader in loaders]
    assert torch.equal(_interleave([images for images, _ in parts]), whole[0])
    assert torch.equal(_interleave([labels for _, labels in parts]), whole[1])
    assert [len(loader) for loader in loaders] == [-(-len(part[1]) // batch) for part in parts]


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5), st.integers(0, 3), st.integers(0, 99))
def test_training_is_the_same_for_every_world_size(world: int, epoch: int, seed: int) -> None:
    options: dict[str, Any] = {"shuffle": True, "augment": True, "seed": seed, "num_samples": 300}
    alone = _digits(**options)
    alone.set_epoch(epoch)
    parts = []
    for rank in range(world):
        loader = _digits(batch_size=17, rank=rank, world_size=world, **options)
        loader.set_epoch(epoch)
        parts.append(_join(loader)[0])
    used = 300 // world * world
    assert torch.equal(_interleave(parts), _join(alone)[0][:used])


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def epoch(number: int, seed: int = 0) -> torch.Tensor:
        loader = _digits(shuffle=True, augment=True, seed=seed)
        loader.set_epoch(number)
        return _join(loader)[0]

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(0), epoch(1))
    assert not torch.equal(epoch(0), epoch(0, seed=1))


def test_a_subset_is_fixed_over_epochs() -> None:
    loader = _digits(shuffle=True, num_samples=50)
    first = _join(loader)[1].bincount(minlength=10)
    loader.set_epoch(5)
    assert len(loader) == 1 and loader.num_images == 50
    assert torch.equal(_join(loader)[1].bincount(minlength=10), first)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 1438),
        ({"fraction": 0.1}, 144),
        ({"fraction": 0.1, "num_samples": 50}, 5),
        ({"fraction": 1e-6}, 1),
        ({"fraction": 1e-6, "world_size": 4}, 4),
    ],
)
def test_a_fraction_of_the_images_is_a_fixed_subset(options: dict[str, Any], count: int) -> None:
    loader = _digits(seed=3, shuffle=True, **options)
    assert loader.num_images == count
    by_number = _digits(seed=3, shuffle=True, **(options | {"fraction": 1, "num_samples": count}))
    assert torch.equal(_join(loader)[0], _join(by_number)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` is 0; it must be at least 1"),
        ({"num_samples": 0}, "`num_samples` is 0"),
        ({"fraction": 0.0}, "`fraction` is 0.0; it is a share between 0 and 1"),
        ({"fraction": 1.5}, "`fraction` is 1.5"),
        (
            {"shuffle": True, "num_samples": 2, "world_size": 3},
            r"3 ranks cannot share 2 image\(s\)",
        ),
    ],
)
def test_senseless_numbers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OmpqError, match=message):
        _digits(**options)


def test_files_come_in_full_batches_with_their_labels(
    damaged_folder: Path, small: Preprocess
) -> None:
    loader = make_loader("imagenet", damaged_folder, "train", small, 5, backend="torchvision")
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [5, 5, 2]
    assert batches[0][0].shape == (5, 3, 32, 32) and batches[0][0].dtype == torch.float32
    assert torch.cat([labels for _, labels in batches]).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    names = [Path(path).name for path in loader.skipped]
    assert names == ["01_cut.jpg", "02_text.jpg", "99_empty.jpg"]
    assert loader.num_classes == 3
    assert len(list(loader)) == 3 and len(loader.skipped) == 3


@pytest.mark.parametrize("workers", [0, 3])
def test_training_makes_up_for_damaged_files_on_every_rank(
    damaged_folder: Path, small: Preprocess, workers: int
) -> None:
    lengths = []
    for rank in range(2):
        loader = make_loader(
            "imagenet",
            damaged_folder,
            "train",
            small,
            2,
            shuffle=True,
            augment=True,
            workers=workers,
            backend="torchvision",
            rank=rank,
            world_size=2,
        )
        lengths.append([len(labels) for _, labels in loader])
        assert len(lengths[-1]) == len(loader)
    assert lengths == [[2, 2, 2, 1]] * 2


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_folder_of_damaged_files_only_is_an_error(
    tmp_path: Path, small: Preprocess, shuffle: bool
) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    for name in ("x.jpg", "y.jpg"):
        (tmp_path / "train" / "a" / name).write_text("no image")
    loader = make_loader("folder", tmp_path, "train", small, 2, shuffle=shuffle)
    with pytest.raises(OmpqError, match=r"none of 2 images can be read \(the first is .*\.jpg\)"):
        list(loader)


def test_a_loader_can_be_left_in_the_middle(image_folder: Path, small: Preprocess) -> None:
    loader = make_loader("imagenet", image_folder, "train", small, 2, workers=2)
    first = next(iter(loader))[1]
    assert torch.equal(next(iter(loader))[1], first)


_ENDLESS = """
import sys
from ompq.data import make_loader
from ompq.preprocess import Preprocess
loader = make_loader("imagenet", sys.argv[1], "train", Preprocess(), 4, workers=2, shuffle=True)
for epoch in range(10**6):
    loader.set_epoch(epoch)
    for images, labels in loader:
        print("batch", flush=True)
"""


def test_ctrl_c_ends_a_loader_with_workers(image_folder: Path) -> None:
    command = [sys.executable, "-c", _ENDLESS, str(image_folder)]
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
        preexec_fn=heed_interrupts,
    )
    try:
        assert process.stdout.readline() == "batch\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert "KeyboardInterrupt" in errors
    assert process.returncode != 0


def test_images_of_a_plain_folder_have_no_label(
    photographs: list[Path], tmp_path: Path, small: Preprocess
) -> None:
    shutil.copy(photographs[0], tmp_path)
    _, labels = next(iter(make_loader("images", tmp_path, "val", small, 2)))
    assert labels.tolist() == [-1]
