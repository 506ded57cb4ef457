"""Scripts on several machines: one agent of torchrun for each, all of them on this one."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from support import ENVIRONMENT, ROOT, run_command

_LAUNCH = [sys.executable, "-m", "torch.distributed.run"]
_SECONDS = 280


def run_on_one_machine(script: str, options: list[str], cwd: Path) -> None:
    """Run a script on two processes of one machine."""
    launch = [*_LAUNCH, "--standalone", "--nproc_per_node=2", str(ROOT / script)]
    ended = run_command([*launch, *options], cwd)
    assert ended.returncode == 0, ended.stderr


def run_on_two_machines(script: str, options: list[str], cwd: Path) -> list[str]:
    """Run a script on two machines, a process each, and return what each of them printed."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    agents = []
    for rank in range(2):
        where = ["--nnodes=2", f"--node_rank={rank}", "--nproc_per_node=1"]
        where += ["--master_addr=127.0.0.1", f"--master_port={port}"]
        command = [*_LAUNCH, *where, str(ROOT / script), *options]
        agents.append(
            subprocess.Popen(
                command, cwd=cwd, env=ENVIRONMENT, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    printed = []
    try:
        for agent in agents:
            output, errors = agent.communicate(timeout=_SECONDS)
            assert agent.returncode == 0, errors
            printed.append(output)
    finally:
        for agent in agents:
            agent.kill()
    return printed
