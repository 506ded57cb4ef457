"""Fixtures of the whole suite: scripts in subprocesses, real photographs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Workers share few cores, and so do the processes they fork: read when PyTorch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from sklearn.datasets import load_sample_images
from support import ROOT, run_command

from examples.train_float import train_float
from ompq.data import make_loader, preprocess_for
from ompq.runtime import seed_everything
from ompq.zoo import load_network

# No test depends on time.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory):
    """Call a script of the repository by its path, from an empty folder."""
    folder = tmp_path_factory.mktemp("elsewhere")

    def call(path: str, *arguments: object, cwd: Path | None = None, **environment: str):
        command = [sys.executable, str(ROOT / path), *map(str, arguments)]
        return run_command(command, cwd or folder, **environment)

    return call


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of two real photographs in two classes: 12 below train/, 4 below val/."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name, image in zip(("temple", "flower"), load_sample_images().images, strict=True):
        for index in range(8):
            split = "train" if index < 6 else "val"
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            top, left = generator.integers(0, 180), generator.integers(0, 380)
            crop = image[top : top + 240, left : left + 250]
            Image.fromarray(crop).save(folder / f"{index}.jpg", quality=92)
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the small residual network after a few epochs on digits."""
    seed_everything(0)
    network = load_network("small_resnet")
    preprocess = preprocess_for("digits", network.preprocess)
    loader = make_loader("digits", None, "train", preprocess, 64, augment=True, shuffle=True)
    module = train_float(network.module, loader, 6, torch.device("cpu"))
    file = tmp_path_factory.mktemp("trained") / "small_resnet.pth"
    torch.save(module.state_dict(), file)
    return file


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)
