"""Batch norm over the batches of two real processes."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from support import run_command
from torch import nn

PROGRAM = """
import sys, torch
from torch import distributed, nn
from ompq.integer.batch_norm import apply_batch_norm

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
torch.save(
    {"out": out.detach(), "grad": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad,
     "mean": norm.running_mean, "var": norm.running_var},
    f"{sys.argv[1]}.{rank}",
)
distributed.destroy_process_group()
"""


def test_two_ranks_normalise_as_one_process_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    x, factors = torch.randn(8, 3, 5, 5) * 3 + 1, torch.randn(8, 3, 5, 5)
    file, program = tmp_path / "state", tmp_path / "program.py"
    torch.save({"norm": norm.state_dict(), "x": x, "factors": factors}, file)
    program.write_text(PROGRAM)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run = run_command([sys.executable, *launch, str(program), str(file)], tmp_path)
    assert run.returncode == 0, run.stderr
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
