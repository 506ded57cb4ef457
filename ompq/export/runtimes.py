"""How an exported file is run here: by ONNX Runtime, by a C compiler's program, by this toolkit."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ompq.artifact import load_quantized
from ompq.errors import OmpqError

_C_FLAGS = ("-std=c99", "-O2", "-Wall", "-Werror")
_C_TIMEOUT = 600
# Severity of the messages that ONNX Runtime prints by itself.
_FATAL = 4
_ORT_MARK = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_COMPARISON = """\
#include <stdio.h>
#include <time.h>
#include "{name}.h"
#include "test_vectors.h"

int main(void)
{{
    static int32_t sums[{prefix}_OUTPUTS];
    long differing = 0;
    clock_t ticks = 0;
    for (int i = 0; i < {prefix}_TESTS; i++) {{
        const clock_t begin = clock();
        {name}_run({inputs}, sums);
        ticks += clock() - begin;
        for (int k = 0; k < {prefix}_OUTPUTS; k++)
            differing += sums[k] != {name}_test_sums[i][k];
    }}
    printf("%d %d %ld %.9f\\n", {prefix}_TESTS, {prefix}_OUTPUTS, differing,
           (double)ticks / CLOCKS_PER_SEC);
    return 0;
}}
"""


class NoRuntime(OmpqError):
    """What would run a file is not installed."""


@dataclass(frozen=True)
class OpenFile:
    """An exported file that is ready to run.

    Attributes:
        run: Function from images (float32, n × channels × height × width) to logits (n × …).
        load_seconds: Seconds that opening took.
        runtime: What runs it, for a person to read.
    """

    run: Callable[[Tensor], Tensor]
    load_seconds: float
    runtime: str


@dataclass(frozen=True)
class CRun:
    """The result of a network in C on its own test vectors.

    Attributes:
        logits: Number of sums that were compared.
        differing: Number of those that differ.
        seconds: Processor seconds per image.
    """

    logits: int
    differing: int
    seconds: float


def open_onnx(file: Path) -> OpenFile:
    """Open a model in ONNX Runtime, on the CPU, with as many threads as torch has.

    Raises:
        NoRuntime: ONNX Runtime is not installed.
        OmpqError: It cannot read the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise NoRuntime(
            "ONNX Runtime is not installed, and nothing was run; pip install onnxruntime"
        ) from error
    runtime = f"ONNX Runtime {onnxruntime.__version__}"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # What goes wrong is raised too.
    options.log_severity_level = _FATAL
    begin = time.perf_counter()
    try:
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
    except _runtime_errors() as error:
        raise OmpqError(
            f"{runtime} cannot read {file}: {_shorten(error)}; another version may"
        ) from error
    seconds = time.perf_counter() - begin
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        try:
            (logits, *_) = session.run(None, {name: images.numpy()})
        except _runtime_errors() as error:
            raise OmpqError(f"{runtime} cannot run {file}: {_shorten(error)}") from error
        return torch.from_numpy(logits)

    return OpenFile(run, seconds, runtime)


def _shorten(error: Exception) -> str:
    """Return what an error of ONNX Runtime says, without where in its sources it was met first."""
    line = next(iter(str(error).splitlines()), "")
    return _ORT_MARK.split(line)[-1].strip(" :") or type(error).__name__


def _runtime_errors() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises; it has no common base class of its own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (kind for kind in vars(state).values() if isinstance(kind, type))
    return (OSError, RuntimeError, *(kind for kind in own if issubclass(kind, Exception)))


def open_packed(file: Path) -> OpenFile:
    """Read a packed file, which this toolkit runs.

    Raises:
        OmpqError: The file is damaged, or of a module of one's own.
    """
    begin = time.perf_counter()
    network = load_quantized(file).network
    seconds = time.perf_counter() - begin

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        logits: Tensor = network.module(images)
        return logits

    return OpenFile(run, seconds, f"torch {torch.__version__}")


def run_c(source: Path) -> CRun:
    """Compile a network in C and run it on the test vectors beside it.

    Args:
        source: `NAME.c`, with `NAME.h` and `test_vectors.h` in its folder.

    Raises:
        NoRuntime: There is no C compiler.
        OmpqError: It does not compile, or the program fails.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoRuntime("there is no C compiler `cc`, and nothing was compiled; install one")
    name = source.stem
    header = source.with_suffix(".h").read_text(encoding="utf-8")
    pointers = re.findall(rf"#define {name.upper()}_(IMAGE\w*)_SIZE", header)
    inputs = ", ".join(f"{name}_test_{pointer.lower()}[i]" for pointer in pointers)
    with tempfile.TemporaryDirectory() as folder:
        comparison, program = Path(folder) / "comparison.c", Path(folder) / "comparison"
        comparison.write_text(
            _COMPARISON.format(name=name, prefix=name.upper(), inputs=inputs), encoding="utf-8"
        )
        files = [str(source), str(comparison), "-I", str(source.parent), "-o", str(program)]
        _call([compiler, *_C_FLAGS, *files], f"compiling {source}")
        found = _call([str(program)], f"running the program of {source}")
    images, outputs, differing, seconds = found.split()
    return CRun(int(images) * int(outputs), int(differing), float(seconds) / int(images))


def _call(command: list[str], doing: str) -> str:
    """Run a program and return what it prints; an error names what was done by it."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_C_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise OmpqError(f"{doing} takes more than {_C_TIMEOUT} s, and was ended") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        reason = next((line for line in said if "error" in line.lower()), said[0])
        raise OmpqError(f"{doing} ended with {done.returncode}: {reason}")
    return done.stdout
