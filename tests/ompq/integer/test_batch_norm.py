"""Batch norm as torch.nn's, in one process and over the batches of two real ones."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from support import run_command
from torch import nn

from ompq.integer.batch_norm import StandaloneBatchNorm, apply_batch_norm

STEPS = 3
PROGRAM = """
import sys, torch
from torch import distributed, nn
from ompq.integer.batch_norm import StandaloneBatchNorm, apply_batch_norm

distributed.init_process_group("gloo")
rank = distributed.get_rank()
state = torch.load(sys.argv[1], weights_only=True)
norm = nn.BatchNorm2d(3)
norm.load_state_dict(state["norm"])
x = state["x"][rank::2].clone().requires_grad_()
out = apply_batch_norm(x, norm.train(), frozen=False)
(out * state["factors"][rank::2]).sum().backward()
for parameter in norm.parameters():
    distributed.all_reduce(parameter.grad)
# Of a class that would refuse the CPU, with an average over all batches.
averaging = StandaloneBatchNorm(nn.SyncBatchNorm(3, momentum=None)).train()
for step in range(state["steps"]):
    coarse = averaging(state["x"][rank::2].bfloat16() + step)
torch.save(
    {"out": out.detach(), "grad": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad,
     "mean": norm.running_mean, "var": norm.running_var, "coarse": coarse.detach(),
     "averages": averaging.state_dict()},
    f"{sys.argv[1]}.{rank}",
)
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("momentum", [None, 0.1, 0.0])
@pytest.mark.parametrize("tracks", [True, False])
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_statistics_are_those_of_torch(
    kind: type[nn.BatchNorm2d], tracks: bool, momentum: float | None
) -> None:
    torch.manual_seed(0)
    expected = nn.BatchNorm2d(3, momentum=momentum, track_running_stats=tracks)
    given = kind(3, momentum=momentum, track_running_stats=tracks)
    given.load_state_dict(expected.state_dict())
    ours = StandaloneBatchNorm(given)
    for step in range(STEPS):
        x = torch.randn(4, 3, 5, 5) * (1 + step) + step
        assert torch.equal(ours.train()(x), expected.train()(x))
        assert torch.equal(ours.eval()(x), expected.eval()(x))
    for name, value in expected.state_dict().items():
        assert torch.equal(ours.norm.state_dict()[name], value), name


def test_a_frozen_norm_neither_learns_nor_counts() -> None:
    norm = nn.BatchNorm2d(3, momentum=None)
    before = copy.deepcopy(norm.state_dict())
    x = torch.randn(4, 3, 5, 5) + 3
    assert torch.equal(apply_batch_norm(x, norm.train(), frozen=True), norm.eval()(x))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_two_ranks_normalise_as_one_process_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    x, factors = torch.randn(8, 3, 5, 5) * 3 + 1, torch.randn(8, 3, 5, 5)
    file, program = tmp_path / "state", tmp_path / "program.py"
    given = {"norm": norm.state_dict(), "x": x, "factors": factors, "steps": STEPS}
    torch.save(given, file)
    program.write_text(PROGRAM)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run = run_command([sys.executable, *launch, str(program), str(file)], tmp_path)
    assert run.returncode == 0, run.stderr
    averaging = nn.BatchNorm2d(3, momentum=None)
    for step in range(STEPS):
        coarse = averaging.train()(x.bfloat16() + step)
    x.requires_grad_()
    out = norm.train()(x)
    (out * factors).sum().backward()
    for rank in range(2):
        found = torch.load(f"{file}.{rank}", weights_only=True)
        assert x.grad is not None
        for name, expected in (
            ("out", out.detach()[rank::2]),
            ("grad", x.grad[rank::2]),
            ("weight", norm.weight.grad),
            ("bias", norm.bias.grad),
            ("mean", norm.running_mean),
            ("var", norm.running_var),
        ):
            torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5, msg=name)
        for name, expected in averaging.state_dict().items():
            torch.testing.assert_close(found["averages"][f"norm.{name}"], expected, msg=name)
        assert found["coarse"].dtype == torch.bfloat16
        torch.testing.assert_close(found["coarse"], coarse.detach()[rank::2], rtol=0.02, atol=0.02)
