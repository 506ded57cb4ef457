"""Checkpoints of a fine-tuning, former ones included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import lively
from torch import Tensor, nn

from ompq.assignment import uniform
from ompq.errors import OmpqError
from ompq.graph import trace
from ompq.integer import ConversionSettings
from QAT import prepare
from QAT.checkpoint import LEARNED_STEPS, load_checkpoint, save_checkpoint


class Own(nn.Module):
    """A network whose own modules are called as fake quantizers were before."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.grid.grid = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grid(x)
        x = torch.cat([self.first(x) + self.second(x), x], 1)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("learned", [False, True])
def test_fake_quantizers_by_their_former_name_are_read(learned: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = trace(lively(Own()), (3, 8, 8))
    # As it was when these names were in use.
    settings = ConversionSettings(learned=learned, quantize_sums=False)
    images = torch.randn(4, 3, 8, 8)
    network = prepare(graph, uniform(graph.groups, 4), images, settings)
    state = network.module.state_dict()
    former = {name.replace(".fake_quantizer.", ".grid."): v for name, v in state.items()}
    assert former.keys() != state.keys()
    assert any(name.startswith("grid.grid.") for name in state)
    for given in (former, state):
        save_checkpoint(tmp_path / "file.tar", {"network": given}, {})
        read = load_checkpoint(tmp_path / "file.tar", {})["network"]
        assert list(read) == list(state), "names, in their order"
        assert all(torch.equal(value, state[name]) for name, value in read.items())


def test_step_sizes_of_an_earlier_version_are_not_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "file.tar"
    learned = {"quantizer": "lsq", LEARNED_STEPS: "of weights"}
    save_checkpoint(file, {"network": {}}, {"quantizer": "lsq"})
    with pytest.raises(OmpqError, match=r"earlier version, whose learned step sizes were of fold"):
        load_checkpoint(file, learned)
    save_checkpoint(file, {"network": {}}, learned)
    load_checkpoint(file, learned)
    # Whoever asks for something else is told of that.
    save_checkpoint(file, {"network": {}}, {"quantizer": "hawq"})
    with pytest.raises(OmpqError, match="quantizer hawq, not lsq"):
        load_checkpoint(file, learned)
    load_checkpoint(file, {"quantizer": "hawq"})
