"""Helpers that tests import: subprocesses, photographs, networks that are not fresh."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from forked import run_forked

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


def run_command(command: list[str], cwd: Path, timeout: float = 900, **environment: str):
    """Run to the end; the result holds text.

    A script by its whole path is forked from a process that has imported PyTorch, where no variable
    is set that Python may read when it starts.
    """
    whole = {**ENVIRONMENT, **environment}
    by_path = command[0] == sys.executable and command[1].startswith(str(ROOT))
    if by_path and not environment:
        return run_forked(command, cwd, whole, timeout)
    return subprocess.run(
        command,
        cwd=cwd,
        env=whole,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def heed_interrupts() -> None:
    """To be run in a child before its program: a runner in the background ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def labelled_photographs() -> list[tuple[Path, int]]:
    """The 20 labelled ImageNet photographs that the package foolbox ships, if installed."""
    spec = find_spec("foolbox")
    if spec is None or spec.origin is None:
        return []
    files = sorted((Path(spec.origin).parent / "data").glob("imagenet_*.jpg"))
    return [(file, int(file.stem.split("_")[2])) for file in files]


def lively(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give a fresh network batch-norm statistics and weights that are far from their start."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            count = module.num_features
            module.running_mean.copy_(torch.randn(count, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(count, generator=generator) + 0.5)
            with torch.no_grad():
                module.weight.copy_(torch.rand(count, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(count, generator=generator) * 0.1)
    return network.eval()
