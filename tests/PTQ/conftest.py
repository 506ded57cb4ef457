"""A small network that was really trained, for what only shows on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ompq.data import make_loader, preprocess_for
from ompq.runtime import seed_everything
from ompq.training import train_float
from ompq.zoo import load_network


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
