"""What a checkpoint's tensors hold, and what lies beside them, whoever wrote it."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ompq.errors import OmpqError
from ompq.zoo import load_network

FILE = """
from torch import nn
def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
"""
State = dict[str, Tensor]


@pytest.fixture
def name(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(FILE)
    return f"{tmp_path / 'net.py'}:make"


@pytest.fixture
def state(name: str) -> State:
    torch.manual_seed(1)
    return {key: torch.randn_like(value) for key, value in _own(name).items()}


def _own(name: str) -> State:
    return load_network(name).module.state_dict()


def load(name: str, folder: Path, content: object) -> State:
    torch.save(content, folder / "w.pth")
    return load_network(name, path=folder / "w.pth").module.state_dict()


def same(found: State, wanted: State) -> bool:
    return found.keys() == wanted.keys() and all(found[k].equal(wanted[k]) for k in found)


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "holds int8, and the network computes with float32": lambda t: (t * 9).to(torch.int8),
    "holds bool": lambda t: t > 0,
    "is complex": lambda t: t.to(torch.complex64),
    "is quantized already": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "has a shape and no values": lambda t: t.to("meta"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_are_no_weights_are_refused_by_name(
    kind: str, name: str, state: State, tmp_path: Path
) -> None:
    state["2.weight"] = KINDS[kind](state["2.weight"])
    with pytest.raises(OmpqError, match=rf"2\.weight {kind}.*float network"):
        load(name, tmp_path, state)


def test_sparse_weights_and_arrays_are_taken(name: str, state: State, tmp_path: Path) -> None:
    given = {**state, "2.weight": state["2.weight"].to_sparse()}
    assert same(load(name, tmp_path, given), state)
    assert same(load(name, tmp_path, {key: t.numpy() for key, t in state.items()}), state)


@pytest.mark.parametrize("wrap", ["tuple", "list", "deep"])
def test_weights_in_lists_and_deep_inside(
    wrap: str, name: str, state: State, tmp_path: Path
) -> None:
    wrapped = {
        "tuple": (state, 3),
        "list": [{"epoch": 1}, {"model": state}],
        "deep": {"a": {"b": {"c": {"d": {"e": state}}}}},
    }
    assert same(load(name, tmp_path, wrapped[wrap]), state)


def _make_optimizer() -> torch.optim.Optimizer:
    return torch.optim.Adam([torch.zeros(3, requires_grad=True)])


BESIDE: dict[str, Callable[[], object]] = {
    "history": lambda: defaultdict(list, {"loss": [1.0, 2.0]}),
    "last": lambda: deque([1, 2], maxlen=2),
    "settings": lambda: SimpleNamespace(lr=0.1, steps=range(3), kinds=frozenset({"a"})),
    "curve": lambda: np.arange(3.0),
    "random": np.random.get_state,
    "optimizer": _make_optimizer,
    "scheduler": lambda: torch.optim.lr_scheduler.StepLR(_make_optimizer(), 1),
    "types": lambda: {"dtype": float, "cast": int},
}


@pytest.mark.parametrize("beside", BESIDE)
def test_what_training_scripts_keep_beside_the_weights(
    beside: str, name: str, state: State, tmp_path: Path
) -> None:
    assert same(load(name, tmp_path, {beside: BESIDE[beside](), "model": state}), state)


def test_arrays_of_numpy_before_its_second_version(name: str, state: State, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    content = {"best": np.float64(3.0), "curve": np.arange(3.0), "model": state}
    torch.save(content, file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes().replace(b"numpy._core", b"numpy.core"))
    network = load_network(name, path=file)
    assert same(network.module.state_dict(), state)
    assert not network.notes


def test_counts_of_operations_are_left_out(name: str, state: State, tmp_path: Path) -> None:
    counts = {"total_ops": torch.ones(1), "2.total_params": torch.ones(1)}
    assert same(load(name, tmp_path, OrderedDict({**state, **counts})), state)


@pytest.mark.parametrize("stepped", [False, True])
def test_the_state_of_an_optimizer_is_called_one(stepped: bool, name: str, tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight])
    if stepped:
        weight.sum().backward()
        optimizer.step()
    with pytest.raises(OmpqError, match="state of an optimizer"):
        load(name, tmp_path, optimizer.state_dict())
