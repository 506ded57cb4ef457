"""Scripts run in processes of their own that need not import PyTorch first.

They are forked from a process that has imported it, which takes longer than most scripts do.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path

# What scripts import of others, and nothing of the project.
_HEAVY = ["torch", "torchvision", "scipy.optimize", "matplotlib.pyplot", "onnx", "onnxruntime"]


def start_forked(
    command: list[str],
    cwd: Path,
    environment: dict[str, str],
    streams: tuple[str, str] = (os.devnull, os.devnull),
) -> BaseProcess:
    """Start a script.

    Args:
        command: Python, path of the script, its arguments.
        cwd: Folder to run it in.
        environment: Its environment variables; those that Python reads when it starts do nothing.
        streams: Files that take what it prints, and its errors.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_HEAVY)
    process = context.Process(target=_run, args=(command[1:], cwd, environment, streams))
    process.start()
    return process


def run_forked(
    command: list[str], cwd: Path, environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a script to the end; the result is that of `subprocess.run` with captured text.

    Args:
        command: Python, path of the script, its arguments.
        cwd: Folder to run it in.
        environment: Its environment variables.
        timeout: Seconds after which it is killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = f"{folder}/out", f"{folder}/err"
        process = start_forked(command, cwd, environment, streams)
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        out, err = (Path(stream).read_text(encoding="utf-8") for stream in streams)
    assert process.exitcode is not None
    return subprocess.CompletedProcess(command, process.exitcode, out, err)


def _run(argv: list[str], cwd: Path, environment: dict[str, str], streams: tuple[str, str]) -> None:
    """Become the script."""
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = argv
    support = str(Path(__file__).parent)
    sys.path[:] = [str(Path(argv[0]).parent), *(path for path in sys.path if path != support)]
    try:
        runpy.run_path(argv[0], run_name="__main__")
    finally:
        # A process of `multiprocessing` ends without what was registered for its end.
        atexit._run_exitfuncs()
