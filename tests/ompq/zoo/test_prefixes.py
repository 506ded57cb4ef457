"""Whatever stands before the names of a checkpoint is removed, and what is left over is named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ompq.errors import OmpqError
from ompq.zoo import Network, load_network

State = dict[str, Tensor]
FILE = """\
import torch
from torch import nn
from ompq.preprocess import Preprocess

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.layers = nn.ModuleList([nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 1)])
        self.fc = nn.Linear(6, num_classes)
        self.preprocess = Preprocess(16, 16)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x).relu()
        return self.fc(x.mean((2, 3)))

def make(num_classes=4):
    return Net(num_classes)
"""


@pytest.fixture
def name(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(FILE)
    return f"{tmp_path / 'net.py'}:make"


@pytest.fixture
def trained(name: str) -> nn.Module:
    """A network of seven classes, which no default has."""
    torch.manual_seed(3)
    return load_network(name, num_classes=7).module


def under(prefix: str, module: nn.Module, changed: float = 0.0) -> State:
    return {prefix + key: value + changed for key, value in module.state_dict().items()}


def load(name: str, folder: Path, content: object) -> Network:
    torch.save(content, folder / "w.pth")
    return load_network(name, path=folder / "w.pth")


def same(network: Network, module: nn.Module) -> bool:
    expected = module.state_dict()
    return network.num_classes == 7 and all(
        value.equal(expected[key]) for key, value in network.module.state_dict().items()
    )


WRAPPED: dict[str, Callable[[nn.Module], State]] = {
    "data parallel": lambda net: nn.DataParallel(net).state_dict(),
    "compiled": lambda net: torch.compile(net).state_dict(),
    "compiled in parallel": lambda net: nn.DataParallel(torch.compile(net)).state_dict(),
    "parallel, then compiled": lambda net: torch.compile(nn.DataParallel(net)).state_dict(),
    "any attribute": lambda net: under("encoder.q.", net),
    "deeply nested": lambda net: under("model.module._orig_mod.", net),
    "a compiled part": lambda net: {
        k.replace("stem.", "stem._orig_mod."): v for k, v in under("", net).items()
    },
    "sharded parts": lambda net: {
        f"_fsdp_wrapped_module.{k.replace('layers.0.', 'layers.0._fsdp_wrapped_module.')}": v
        for k, v in under("", net).items()
    },
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers(kind: str, name: str, trained: nn.Module, tmp_path: Path) -> None:
    network = load(name, tmp_path, {"state_dict": WRAPPED[kind](trained)})
    assert same(network, trained)
    assert not network.notes


BESIDE: dict[str, tuple[Callable[[nn.Module], State], list[str]]] = {
    "stochastic weight average": (
        lambda net: AveragedModel(net).state_dict(),
        ["n_averaged"],
    ),
    "average of a parallel network": (
        lambda net: AveragedModel(nn.DataParallel(net)).state_dict(),
        ["n_averaged"],
    ),
    "training framework": (
        lambda net: {**under("model.", net), "criterion.weight": torch.ones(7)},
        ["criterion.weight"],
    ),
    "framework around a compiled network": (
        lambda net: {
            "train_accuracy.total": torch.ones(1),
            **under("net._orig_mod.", net),
            **under("loss.perceptual.", nn.Linear(2, 2)),
        },
        ["train_accuracy.total", "loss.perceptual.weight", "loss.perceptual.bias"],
    ),
    "teacher first": (
        lambda net: {**under("teacher.", net, 1.0), **under("student.", net)},
        ["teacher.* (12 entries, which fit as well)"],
    ),
    "two encoders": (
        lambda net: {**under("module.encoder_q.", net), **under("module.encoder_k.", net, 1.0)},
        ["module.encoder_k.* (12 entries, which fit as well)"],
    ),
    "two backbones": (
        lambda net: {**under("one.backbone.", net), **under("two.backbone.", net, 1.0)},
        ["two.* (12 entries, which fit as well)"],
    ),
    "average first": (
        lambda net: {
            "step": torch.tensor(5),
            **under("ema_model.", net, 1.0),
            **under("online_model.", net),
        },
        ["step", "ema_model.* (12 entries, which fit as well)"],
    ),
    "the average alone": (
        lambda net: {"initted": torch.tensor(1), **under("ema_model.module.", net)},
        ["initted"],
    ),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_what_lies_beside_the_network_is_named(
    kind: str, name: str, trained: nn.Module, tmp_path: Path
) -> None:
    wrap, left_out = BESIDE[kind]
    network = load(name, tmp_path, {"state_dict": wrap(trained), "epoch": 3})
    assert same(network, trained)
    (note,) = network.notes
    for told in (note, network.source):
        assert all(entry in told for entry in left_out), told
    assert "model.stem" not in note


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_a_leftover_behind_the_networks_prefix_is_a_misfit(
    prefix: str, name: str, trained: nn.Module, tmp_path: Path
) -> None:
    state = {**under(prefix, trained), f"{prefix}fc2.weight": torch.ones(2, 2)}
    with pytest.raises(OmpqError, match=r"1 are unexpected \(fc2\.weight\)"):
        load(name, tmp_path, state)


def test_a_part_that_lacks_is_a_misfit_behind_a_prefix(
    name: str, trained: nn.Module, tmp_path: Path
) -> None:
    state = {**under("model.", trained), "n_averaged": torch.tensor(2)}
    del state["model.layers.0.bias"]
    with pytest.raises(OmpqError, match=r"1 are missing \(layers\.0\.bias\)"):
        load(name, tmp_path, state)


def test_a_network_whose_own_names_hold_a_wrappers(tmp_path: Path) -> None:
    text = FILE.replace("self.stem", "self.module").replace("self.fc", "self.model")
    (tmp_path / "net.py").write_text(text)
    name = f"{tmp_path / 'net.py'}:make"
    trained = load_network(name, num_classes=7).module
    for prefix in ("", "module."):
        assert same(load(name, tmp_path, under(prefix, trained)), trained)


CONTAINERS = ["ema", "model_ema", "ema_state_dict", "averaged_model", "teacher", "my_network"]


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_only_container_whose_tensors_fit(
    container: str, name: str, trained: nn.Module, tmp_path: Path
) -> None:
    content = {
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
        "config": {"mean": torch.zeros(3)},
        container: under("module.", trained),
        "epoch": torch.tensor(7),
    }
    assert same(load(name, tmp_path, content), trained)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("state_dict", "state_dict_ema"),
        ("model", "ema"),
        ("model", "model_ema"),
        ("net", "teacher"),
        ("online", "ema_state_dict"),
    ],
)
def test_of_two_that_fit_the_weights_come_before_their_average(
    first: str, second: str, name: str, trained: nn.Module, tmp_path: Path
) -> None:
    content = {second: under("", trained, 1.0), first: under("", trained)}
    network = load(name, tmp_path, content)
    assert same(network, trained)
    assert f"{second}.* (12 entries)" in network.notes[0]


def test_of_two_the_one_that_fits_is_taken(name: str, trained: nn.Module, tmp_path: Path) -> None:
    other = {f"layer{i}.weight": torch.ones(2, 2) for i in range(12)}
    assert same(load(name, tmp_path, {"model": other, "student": under("", trained)}), trained)


@pytest.fixture
def framework(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A training framework that is installed where the file is written."""
    module = ModuleType("framework_elsewhere")
    for known, bases in (("AttributeDict", (dict,)), ("Config", ()), ("Callback", ())):
        setattr(module, known, type(known, bases, {"__module__": module.__name__}))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def lightning(framework: Any, module: nn.Module) -> dict[str, Any]:
    """A checkpoint as Lightning writes them."""
    config = framework.Config()
    config.__dict__.update(width=6, path=Path("runs") / "1")
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {**under("net.", module), "criterion.weight": torch.ones(7)},
        "callbacks": {framework.Callback: {"best": torch.tensor(1.0)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
        "hyper_parameters": framework.AttributeDict(lr=0.1, config=config),
    }


def test_settings_of_a_framework_that_is_not_here_are_left_out_and_named(
    framework: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    trained: nn.Module,
    tmp_path: Path,
) -> None:
    torch.save(lightning(framework, trained), tmp_path / "last.ckpt")
    monkeypatch.delitem(sys.modules, framework.__name__)
    network = load_network(name, path=tmp_path / "last.ckpt")
    assert same(network, trained)
    (note,) = network.notes
    assert "criterion.weight" in note
    assert "objects of framework_elsewhere.AttributeDict" in note
    assert framework.__name__ not in sys.modules


def test_a_whole_network_beside_a_few_tensors_is_called_one(
    framework: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    trained: nn.Module,
    tmp_path: Path,
) -> None:
    class Net(nn.Sequential):
        __module__ = framework.__name__
        __qualname__ = "Net"

    monkeypatch.setattr(framework, "Net", Net, raising=False)
    torch.save({"model": Net(nn.ReLU()), "best": torch.tensor(3.0)}, tmp_path / "net.pt")
    monkeypatch.delitem(sys.modules, framework.__name__)
    with pytest.raises(OmpqError, match=r"a whole network \(framework_elsewhere\.Net\)"):
        load_network(name, path=tmp_path / "net.pt")
