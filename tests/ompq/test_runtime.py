"""Where a run happens: device, seed, ranks, progress."""

from __future__ import annotations

import io
import random
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ompq.errors import OmpqError
from ompq.runtime import (
    Ranks,
    gather_rows,
    process_group,
    progress,
    resolve_device,
    seed_everything,
    shard_sizes,
    versions,
)


class TestRanks:
    def test_without_torchrun_there_is_one_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        assert Ranks.from_environment() == Ranks(0, 1, 0)
        assert Ranks().is_main

    @pytest.mark.parametrize(("local", "number"), [("1", 1), (None, 0)])
    def test_the_environment_of_torchrun_is_read(
        self, monkeypatch: pytest.MonkeyPatch, local: str | None, number: int
    ) -> None:
        monkeypatch.setenv("RANK", "5")
        monkeypatch.setenv("WORLD_SIZE", "8")
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        if local is not None:
            monkeypatch.setenv("LOCAL_RANK", local)
        ranks = Ranks.from_environment()
        assert ranks == Ranks(5, 8, number) and not ranks.is_main

    def test_one_process_needs_no_group(self) -> None:
        rows = torch.arange(6.0).reshape(3, 2)
        with process_group(Ranks(), torch.device("cpu")):
            assert not torch.distributed.is_initialized()
            assert gather_rows(rows, 3, Ranks()) is rows


class TestResolveDevice:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("gpu", "`device` gpu: not a device; use auto, cpu, cuda or cuda:N"),
            ("", "`device` : not a device"),
            ("meta", "`device` meta: this runs on cpu and cuda"),
        ],
    )
    def test_other_names_are_refused(self, name: str, message: str) -> None:
        with pytest.raises(OmpqError, match=message):
            resolve_device(name)

    def test_without_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
        for name in ("cuda", "cuda:1"):
            with pytest.raises(OmpqError, match=f"`device` {name}: PyTorch sees no CUDA device"):
                resolve_device(name)

    def test_with_two_cuda_devices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
        assert resolve_device("auto") == torch.device("cuda", 0)
        assert resolve_device("cuda", local_rank=1) == torch.device("cuda", 1)
        assert resolve_device("cuda:0", local_rank=1) == torch.device("cuda", 0)
        assert resolve_device("cpu", local_rank=1) == torch.device("cpu")
        with pytest.raises(OmpqError, match="device 2 of 2; start fewer processes"):
            resolve_device("cuda", local_rank=2)
        with pytest.raises(OmpqError, match="`device` cuda:7: device 7 of 2"):
            resolve_device("cuda:7")


@given(st.integers(0, 10_000), st.integers(1, 64))
def test_shards_are_whole_and_nearly_equal(rows: int, world_size: int) -> None:
    sizes = shard_sizes(rows, world_size)
    assert len(sizes) == world_size and sum(sizes) == rows
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_a_seed_repeats_every_generator(seed: int) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(seed)
    first, second = draw(), draw()
    seed_everything(seed)
    assert draw() == first and first != second
    seed_everything(seed - 1 if seed else 1)
    assert not set(draw()) & set(first)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestProgress:
    def test_it_is_silent_without_a_terminal(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert list(progress([1, 2, 3], "steps", ranks=Ranks())) == [1, 2, 3]
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(("rank", "shown"), [(0, True), (1, False)])
    def test_in_a_terminal_the_main_rank_shows_it(
        self, monkeypatch: pytest.MonkeyPatch, rank: int, shown: bool
    ) -> None:
        terminal = _Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        assert list(progress([1, 2], "steps", ranks=Ranks(rank, 2))) == [1, 2]
        assert ("steps" in terminal.getvalue()) == shown


def test_versions_name_what_a_result_depends_on() -> None:
    found = versions()
    assert torch.__version__.startswith(found["torch"].split("+")[0])
    assert {"python", "numpy", "timm", "torchvision", "scipy"} <= found.keys()
