"""A network from the user's own file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ompq.errors import OmpqError
from ompq.zoo import load_network, rebuild

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


def test_a_factory_that_builds_in_inference_mode(file: Path, tmp_path: Path) -> None:
    code = "import torch\n@torch.inference_mode()\ndef built():\n    return net()\n"
    file.write_text(GOOD + code)
    torch.save(load_network(f"{file}:net").module.state_dict(), tmp_path / "net.pth")
    network = load_network(f"{file}:built", path=tmp_path / "net.pth").module
    network(torch.ones(2, 3, 4, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


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


KINDS = """\
import argparse
import torch
from torch import nn

def base():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(216, 5))

def half():
    return base().half()

def double():
    return base().double()

def parallel():
    return nn.DataParallel(base())

def compiled():
    return torch.compile(nn.DataParallel(base()))

def training():
    return base().train()

def needs(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))

def lazy():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.LazyLinear(5))

def lazy_inside():
    return nn.Sequential(base(), nn.Sequential(nn.Linear(5, 5), nn.LazyBatchNorm1d()))

def lazy_but_run():
    net = lazy()
    net(torch.zeros(1, 3, 8, 8))
    return net

def meta():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Linear(2, 2, device="meta"))

def scripted():
    return torch.jit.script(base())

def leaves():
    argparse.ArgumentParser().parse_args(["--unknown"])

def raises():
    raise RuntimeError("CUDA is not here\\nsecond line")
"""


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    (tmp_path / "kinds.py").write_text(KINDS)
    return tmp_path / "kinds.py"


@pytest.mark.parametrize(("factory", "given"), [("half", "float16"), ("double", "float64")])
def test_other_precisions_become_float32_and_are_named(
    kinds: Path, factory: str, given: str
) -> None:
    network = load_network(f"{kinds}:{factory}")
    assert {p.dtype for p in network.module.parameters()} == {torch.float32}
    (note,) = network.notes
    assert f"{factory} came in {given}; everything is computed in float32" in note


def test_a_half_network_gets_the_checkpoints_full_precision(kinds: Path, tmp_path: Path) -> None:
    state = load_network(f"{kinds}:base").module.state_dict()
    torch.save(state, tmp_path / "w.pth")
    network = load_network(f"{kinds}:half", path=tmp_path / "w.pth")
    assert network.module.state_dict()["0.weight"].equal(state["0.weight"])
    assert not network.notes


@pytest.mark.parametrize("factory", ["parallel", "compiled", "training", "lazy_but_run"])
def test_the_network_itself_in_evaluation_mode(kinds: Path, factory: str) -> None:
    network = load_network(f"{kinds}:{factory}")
    assert type(network.module).__name__ == "Sequential"
    assert not network.module.training
    assert network.num_classes == 5


def test_a_factory_that_needs_the_number_of_classes(kinds: Path, tmp_path: Path) -> None:
    with pytest.raises(OmpqError, match=r"the factory builds nothing without.*give `num_classes`"):
        load_network(f"{kinds}:needs")
    network = load_network(f"{kinds}:needs", num_classes=4)
    torch.save(network.module.state_dict(), tmp_path / "w.pth")
    assert load_network(f"{kinds}:needs", path=tmp_path / "w.pth", num_classes=4).num_classes == 4
    with pytest.raises(OmpqError, match="`num_classes` 3 contradicts"):
        load_network(f"{kinds}:needs", path=tmp_path / "w.pth", num_classes=3)
    assert rebuild(network.architecture(), {})[1].out_features == 4


@pytest.mark.parametrize(
    ("factory", "complaint"),
    [
        ("lazy", r"the layer 2 \(LazyLinear\) has no shape.*let the factory run the network once"),
        ("lazy_inside", r"the layer 1\.1 \(LazyBatchNorm1d\) has no shape"),
        ("meta", r"1\.weight is on PyTorch's meta device.*build the network on the CPU"),
        ("scripted", "gave a TorchScript module, which cannot be traced"),
        ("leaves", r"kinds\.py:\d+ failed: SystemExit: 2"),
        ("raises", r"kinds\.py:\d+ failed: RuntimeError: CUDA is not here"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_networks_that_cannot_be_used_say_what_to_do(
    kinds: Path, factory: str, complaint: str
) -> None:
    with pytest.raises(OmpqError, match=complaint) as caught:
        load_network(f"{kinds}:{factory}")
    assert "\n" not in str(caught.value)


class TestRebuild:
    """A saved network names a file of the user's, which is found from wherever it is read."""

    @pytest.fixture
    def architecture(self, kinds: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
        monkeypatch.chdir(kinds.parent)
        told = load_network("kinds.py:base").architecture()
        assert (told["name"], told["file"]) == ("kinds.py:base", str(kinds.resolve()))
        elsewhere = kinds.parent / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        return told

    def test_from_another_folder(self, architecture: dict[str, object]) -> None:
        assert rebuild(architecture, {})[2].out_features == 5

    def test_not_a_file_of_that_name_that_is_here_by_chance(
        self, architecture: dict[str, object]
    ) -> None:
        Path("kinds.py").write_text(
            "from torch import nn\ndef base():\n    return nn.Linear(2, 2)\n"
        )
        assert rebuild(architecture, {})[2].out_features == 5

    @pytest.mark.parametrize("place", [".", "out", "out/run1"])
    def test_moved_together_with_the_saved_network(
        self, architecture: dict[str, object], kinds: Path, tmp_path: Path, place: str
    ) -> None:
        (tmp_path / "moved" / place).mkdir(parents=True)
        kinds.rename(tmp_path / "moved" / "kinds.py")
        module = rebuild(architecture, {}, tmp_path / "moved" / place)
        assert module[2].out_features == 5

    def test_into_the_folder_one_is_in(self, architecture: dict[str, object], kinds: Path) -> None:
        kinds.rename(Path.cwd() / "kinds.py")
        assert rebuild(architecture, {})[2].out_features == 5

    def test_gone(self, architecture: dict[str, object], kinds: Path, tmp_path: Path) -> None:
        kinds.unlink()
        with pytest.raises(OmpqError, match=r"there is no file kinds\.py") as caught:
            rebuild(architecture, {}, tmp_path / "out")
        for place in (kinds, Path.cwd() / "kinds.py", tmp_path / "out" / "kinds.py"):
            assert str(place) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_saved_before_the_place_was_kept(
        self, architecture: dict[str, object], tmp_path: Path
    ) -> None:
        del architecture["file"]
        assert rebuild(architecture, {}, tmp_path / "out")[2].out_features == 5
