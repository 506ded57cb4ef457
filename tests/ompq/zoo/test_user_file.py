"""A network from the user's own file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ompq.errors import OmpqError
from ompq.zoo import load_network

GOOD = """\
from dataclasses import dataclass
from torch import nn
from widths_of_mine import WIDTH
from ompq.preprocess import Preprocess

@dataclass
class Settings:
    width: int = WIDTH

def net(num_classes=3):
    width = Settings().width
    made = nn.Sequential(nn.Conv2d(3, width, 3), nn.Flatten(), nn.Linear(4 * width, num_classes))
    made.preprocess = Preprocess(4, 4)
    return made

def fixed():
    return nn.Sequential(nn.Conv2d(3, 5, 1))

def no_network():
    return 7

def broken():
    width = 3
    return nn.Conv2d(width, unknown_width, 1)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "widths_of_mine.py").write_text("WIDTH = 6\n")
    (tmp_path / "mine.py").write_text(GOOD)
    return tmp_path / "mine.py"


def test_a_factory_with_neighbours_and_preprocess(file: Path) -> None:
    before = list(sys.path)
    network = load_network(f"{file}:net")
    assert network.num_classes == 3
    assert network.preprocess.input_size == 4
    assert network.module(torch.zeros(2, 3, 4, 4)).shape == (2, 3)
    assert sys.path == before


def test_a_relative_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert load_network("mine.py:net").num_classes == 3


def test_classes_from_the_argument_and_from_the_checkpoint(file: Path, tmp_path: Path) -> None:
    network = load_network(f"{file}:net", num_classes=8)
    assert network.num_classes == 8
    torch.save(network.module.state_dict(), tmp_path / "w.pth")
    again = load_network(f"{file}:net", path=tmp_path / "w.pth")
    assert again.num_classes == 8
    assert again.module[2].weight.equal(network.module[2].weight)


def test_a_factory_without_classes(file: Path) -> None:
    assert load_network(f"{file}:fixed", num_classes=8).num_classes == 5


@pytest.mark.parametrize(
    ("factory", "complaint"),
    [
        ("nothing", r"mine\.py has no function 'nothing'; it defines Settings, net, fixed"),
        ("no_network", "gave a int, not a torch.nn.Module"),
        ("broken", r"mine\.py:24 failed: NameError: name 'unknown_width'"),
    ],
)
def test_what_is_wrong_is_named(file: Path, factory: str, complaint: str) -> None:
    with pytest.raises(OmpqError, match=complaint):
        load_network(f"{file}:{factory}")


def test_errors_at_import_name_their_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("x = 1\ny = (\n")
    with pytest.raises(OmpqError, match=r"bad\.py:2: '\(' was never closed"):
        load_network(f"{file}:net")
    file.write_text("x = 1\nimport not_there_at_all\n")
    with pytest.raises(OmpqError, match=r"bad\.py:2 failed: ModuleNotFoundError"):
        load_network(f"{file}:net")
    with pytest.raises(OmpqError, match="there is no file"):
        load_network(f"{tmp_path / 'none.py'}:net")
