"""The number of classes is what the network gives for an image, wherever its classifier stands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ompq.errors import OmpqError
from ompq.preprocess import Preprocess
from ompq.zoo import load_network
from ompq.zoo._classes import count_classes, tell_classes

FILE = """\
import torch
import torch.nn.functional as F
from torch import nn
from ompq.preprocess import Preprocess

class Base(nn.Module):
    channels = 3

    def __init__(self, n):
        super().__init__()
        self.define(n)
        self.preprocess = Preprocess(16, 16, (0.5,) * self.channels, (0.5,) * self.channels)

    def body(self, x):
        return F.relu(self.c2(F.relu(self.c1(x))))

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))

class First(Base):
    def define(self, n):
        self.fc = nn.Linear(8, n)
        self.c1, self.c2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

class InAList(Base):
    def define(self, n):
        self.heads = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, n)])
        self.c1, self.c2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x):
        return self.heads[1](self.heads[0](self.body(x).mean((2, 3))))

class Pixels(Base):
    def define(self, n):
        self.out = nn.Conv2d(8, n, 1)
        self.c1, self.c2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x):
        return F.adaptive_avg_pool2d(self.out(self.body(x)), 1)

class TwoHeads(Base):
    def define(self, n):
        self.fc, self.fc2 = nn.Linear(8, n), nn.Linear(8, n)
        self.c1, self.c2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x):
        x = self.body(x).mean((2, 3))
        return (self.fc(x) + self.fc2(x)) / 2

class Pairs(Base):
    def define(self, n):
        self.fc = nn.Linear(8, 2 * n)
        self.c1, self.c2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3))).unflatten(1, (-1, 2)).amax(2)

class NoLayer(Base):
    def define(self, n):
        self.weight = nn.Parameter(torch.ones(8, n))
        self.c1, self.c2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x):
        return self.body(x).mean((2, 3)) @ self.weight

class Grey(First):
    channels = 1

    def define(self, n):
        super().define(n)
        self.c1 = nn.Conv2d(1, 8, 3)

class Cached(First):
    def forward(self, x):
        if not hasattr(self, "table"):
            self.table = torch.arange(8.0)
        return self.fc(self.body(x).mean((2, 3)) + self.table)

class Constant(First):
    def define(self, n):
        super().define(n)
        self.shift = torch.ones(8)  # no buffer: stays on the CPU

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)) + self.shift)

class Looks(First):
    def forward(self, x):
        x = self.body(x).mean((2, 3))
        return self.fc(x if x.abs().max().item() >= 0 else -x)
"""
KINDS = [
    "First",
    "InAList",
    "Pixels",
    "TwoHeads",
    "Pairs",
    "NoLayer",
    "Grey",
    "Cached",
    "Constant",
    "Looks",
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    factories = "".join(
        f"\ndef {k.lower()}(num_classes=4):\n    return {k}(num_classes)\n" for k in KINDS
    )
    (tmp_path / "nets.py").write_text(FILE + factories)
    return tmp_path / "nets.py"


@pytest.mark.parametrize("kind", KINDS)
def test_classes_of_the_network_and_of_the_checkpoint(kind: str, file: Path) -> None:
    name = f"{file}:{kind.lower()}"
    assert load_network(name).num_classes == 4
    trained = load_network(name, num_classes=7)
    assert trained.num_classes == 7
    torch.save(trained.module.state_dict(), file.parent / "w.pth")
    for told in (None, 7):
        again = load_network(name, path=file.parent / "w.pth", num_classes=told)
        assert again.num_classes == 7
        state = again.module.state_dict()
        assert all(state[k].equal(v) for k, v in trained.module.state_dict().items())
    with pytest.raises(OmpqError, match=r"`num_classes` 4 contradicts .*w\.pth, which has 7"):
        load_network(name, path=file.parent / "w.pth", num_classes=4)


def test_counting_leaves_the_network_as_it_is(file: Path) -> None:
    module = load_network(f"{file}:cached").module
    assert not hasattr(module, "table")
    assert module(torch.zeros(1, 3, 16, 16)).shape == (1, 4)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Dropout())
    state = torch.random.get_rng_state()
    assert count_classes(network, Preprocess(2, 2)) == 5
    assert torch.random.get_rng_state().equal(state)


def test_an_image_of_another_size_where_nothing_is_known() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Flatten(), nn.Conv1d(1, 1, 1))
    flat = nn.Sequential(nn.Conv2d(1, 2, 5), nn.Flatten(), nn.Linear(2 * 28 * 28, 6), nn.Softmax(1))
    assert count_classes(nn.Sequential(flat, nn.Identity()), Preprocess()) == 6
    # What takes no image at all has as many classes as its last layer, as ever.
    network = nn.Sequential(nn.Linear(999, 9))
    assert count_classes(network, Preprocess()) == 9
    with pytest.raises(OmpqError, match="no convolution and no linear layer"):
        count_classes(nn.Sequential(nn.Bilinear(2, 2, 2)), Preprocess(8, 8))


class _Outputs(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.last = nn.Conv2d(3, 11, 1)

    def forward(self, x: torch.Tensor) -> object:
        logits = x.new_zeros(len(x), 5)
        other = self.last(x)
        return {
            "pair": (logits, other),
            "dict": {"aux": other, "out": logits},
            "token": logits.unsqueeze(1),
            "trailing": logits[..., None, None],
        }[self.kind]


@pytest.mark.parametrize("kind", ["pair", "dict", "token", "trailing"])
def test_forms_of_logits(kind: str) -> None:
    assert count_classes(_Outputs(kind), Preprocess(8, 8)) == 5


def test_weights_that_differ_in_more_than_classes_tell_none() -> None:
    own = {"a": torch.zeros(8, 3), "fc": torch.zeros(4, 8)}
    assert tell_classes(own, {"a": torch.zeros(16, 3), "fc": torch.zeros(7, 16)}, 4) is None
    assert tell_classes(own, {"fc": torch.zeros(7, 8)}, 4) == 7
    assert tell_classes(own, {"fc": torch.zeros(7, 8, 1, 1)}, 4) == 7
    assert tell_classes(own, own, 4) is None
