"""Weight files are read without running what is in them, and bad ones say what to do."""

from __future__ import annotations

import argparse
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ompq.errors import OmpqError
from ompq.zoo._checkpoint import check_finite, find_weights, read_state_dict

WEIGHTS = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.ones(2)}


def _same(read: dict[str, torch.Tensor]) -> bool:
    return read.keys() == WEIGHTS.keys() and all(read[k].equal(WEIGHTS[k]) for k in WEIGHTS)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".tar", ".pth.tar", ".pkl"])
@pytest.mark.parametrize("container", [None, "state_dict", "model", "model_state_dict", "net"])
def test_containers_and_suffixes(tmp_path: Path, suffix: str, container: str | None) -> None:
    file = tmp_path / f"weights{suffix}"
    torch.save(WEIGHTS if container is None else {container: WEIGHTS, "epoch": 3}, file)
    assert _same(read_state_dict(file))


def test_nested_containers_and_wrappers(tmp_path: Path) -> None:
    wrapped = {f"module._orig_mod.{name}": value for name, value in WEIGHTS.items()}
    torch.save({"model": {"state_dict": wrapped}}, tmp_path / "w.pth")
    assert _same(read_state_dict(tmp_path / "w.pth"))


def test_safetensors(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    assert _same(read_state_dict(tmp_path / "w.safetensors"))


def test_a_training_checkpoint_with_its_arguments_and_best_accuracy(tmp_path: Path) -> None:
    content = {
        "state_dict": WEIGHTS,
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(71.5),
        "seen": np.int64(7),
    }
    torch.save(content, tmp_path / "w.pth.tar")
    assert _same(read_state_dict(tmp_path / "w.pth.tar"))


class TestFolder:
    def test_the_papers_place_comes_first(self, tmp_path: Path) -> None:
        best = tmp_path / "checkpoint" / "model_best.pth.tar"
        best.parent.mkdir()
        best.touch()
        (tmp_path / "other.pth").touch()
        assert find_weights(tmp_path) == best

    def test_the_only_weight_file(self, tmp_path: Path) -> None:
        (tmp_path / "log.txt").touch()
        (tmp_path / "net.pth").touch()
        assert find_weights(tmp_path) == tmp_path / "net.pth"

    def test_several_are_listed(self, tmp_path: Path) -> None:
        for name in ("a.pth", "b.safetensors"):
            (tmp_path / name).touch()
        with pytest.raises(OmpqError, match=r"2 weight files \(a.pth, b.safetensors\).*`path`"):
            find_weights(tmp_path)

    def test_what_systems_leave_beside_a_file_is_none(self, tmp_path: Path) -> None:
        for name in ("._net.pth", "net.pth"):
            (tmp_path / name).touch()
        assert find_weights(tmp_path) == tmp_path / "net.pth"

    def test_none(self, tmp_path: Path) -> None:
        with pytest.raises(OmpqError, match="holds no weight file"):
            find_weights(tmp_path)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(OmpqError, match=r"nowhere does not exist; give `path`"):
            find_weights(tmp_path / "nowhere")


class _Trap:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    torch.save({"state_dict": WEIGHTS, "x": _Trap(f"touch {trace}")}, tmp_path / "w.pth")
    with pytest.raises(OmpqError, match=r"pickled code \(\w*\.?system\).*model.state_dict"):
        read_state_dict(tmp_path / "w.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(_Trap(f"touch {trace}")))
    with pytest.raises(OmpqError):
        read_state_dict(tmp_path / "plain.pkl")
    assert not trace.exists()


def test_a_whole_network_is_refused_with_advice(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(OmpqError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict\(\)"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pth.tar"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02garbage", b"PK\x03\x04"])
def test_damaged(tmp_path: Path, suffix: str, content: bytes) -> None:
    file = tmp_path / f"w{suffix}"
    file.write_bytes(content)
    with pytest.raises(OmpqError, match="damaged or no weight file") as caught:
        read_state_dict(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save(WEIGHTS, file)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(OmpqError, match="damaged"):
        read_state_dict(file)


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, [1, 2], 5])
def test_no_weights_inside(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(OmpqError, match="holds no weights by name"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize(("value", "kind"), [(math.nan, "NaN"), (math.inf, "infinity")])
@pytest.mark.parametrize("name", ["weight", "running_mean", "running_var"])
def test_what_training_has_made_must_be_finite(name: str, value: float, kind: str) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    network[1].state_dict()[name][1] = value
    with pytest.raises(OmpqError, match=f"here: 1.{name} holds {kind}"):
        check_finite(network, "here")


def test_a_buffer_may_be_infinite_but_no_number() -> None:
    network = nn.Linear(2, 2)
    mask = torch.full((2, 2), -math.inf).triu(1)
    network.register_buffer("mask", mask)
    check_finite(network, "here")
    mask[0, 0] = math.nan
    with pytest.raises(OmpqError, match="here: mask holds NaN"):
        check_finite(network, "here")
