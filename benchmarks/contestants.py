"""The forms of a network that `deploy.py` times: what opens them, and how they take turns."""

from __future__ import annotations

import importlib
import importlib.util
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import measure_seconds
from ompq.export.checks import Exported
from ompq.export.runtimes import NoRuntime, OpenFile, open_onnx, open_packed
from ompq.graph import NetworkGraph

# Openings of a file, of which the median is told, and rounds before those that count.
LOADS = 3
WARM_UP = 1
TORCH_FLOAT, ORT_FLOAT = "torch float", "ONNX Runtime float"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Contestant:
    """A form of a network that is timed.

    Attributes:
        name: What runs which form.
        size: Bytes that the network takes in it.
        open: Function that makes it ready to run.
    """

    name: str
    size: int
    open: Callable[[], OpenFile]


def export_float(
    module: nn.Module, image: Tensor, file: Path, say: Callable[[str], None]
) -> Path | None:
    """Export a float network to ONNX by PyTorch's own exporter.

    Args:
        module: Network in evaluation mode.
        image: Image that it is traced with, 1 × channels × height × width.
        file: File to write.
        say: Function that is told what is not installed.

    Returns:
        The file; None where a package is not installed that the exporter needs.
    """
    if importlib.util.find_spec("onnxscript") is None:
        say("float networks in ONNX are left out, for onnxscript is not installed; pip install it")
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (image,), str(file), dynamo=True, external_data=False, verbose=False
        )
    return file


def open_float(module: nn.Module) -> OpenFile:
    """Return a float network as PyTorch runs it."""

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        logits: Tensor = module(images)
        return logits

    return OpenFile(run, 0.0, f"torch {torch.__version__}")


def open_openvino(file: Path, shape: tuple[int, ...], threads: int) -> OpenFile:
    """Open a model in OpenVINO, on the CPU, for one image at a time and with floats in 32 bits.

    Args:
        file: ONNX model.
        shape: Channels × height × width of an image.
        threads: Number of threads.

    Raises:
        NoRuntime: OpenVINO is not installed.
    """
    try:
        openvino = importlib.import_module("openvino")
    except ImportError as error:
        raise NoRuntime("OpenVINO is not installed, and left out; pip install openvino") from error
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Where the processor can, it would compute in bfloat16.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    begin = time.perf_counter()
    core = openvino.Core()
    model = core.read_model(file)
    model.reshape([1, *shape])
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    seconds = time.perf_counter() - begin

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(request.infer([images.numpy()])[0])

    return OpenFile(run, seconds, f"OpenVINO {openvino.__version__}")


def list_contestants(
    folded: NetworkGraph, exported: dict[str, Exported], floats: Path | None, threads: int
) -> list[Contestant]:
    """List what is timed in turns.

    Args:
        folded: Float network, batch norm folded, in evaluation mode.
        exported: What `export_all` returned.
        floats: Float network in ONNX; None where it could not be exported.
        threads: Number of threads of OpenVINO; the others have as many as torch.
    """
    module = folded.module
    packed, plain = exported["packed"], exported["onnx"]
    vino = partial(open_openvino, shape=folded.input_shape, threads=threads)
    found = [
        Contestant(TORCH_FLOAT, count_bytes(module), lambda: open_float(module)),
        Contestant("ompq integers", packed.size, partial(open_packed, packed.file)),
    ]
    if floats is not None:
        found.append(Contestant(ORT_FLOAT, floats.stat().st_size, partial(open_onnx, floats)))
    for row in (plain, exported["onnx-packed"], exported["onnx-integer"]):
        name = f"ONNX Runtime {row.file.name}"
        found.append(Contestant(name, row.size, partial(open_onnx, row.file)))
    if floats is not None:
        found.append(Contestant("OpenVINO float", floats.stat().st_size, partial(vino, floats)))
    name = f"OpenVINO {plain.file.name}"
    return [*found, Contestant(name, plain.size, partial(vino, plain.file))]


def count_bytes(module: nn.Module) -> int:
    """Count the bytes of a module's parameters and buffers.

    >>> count_bytes(nn.Linear(3, 2))
    32
    """
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def measure(
    contestants: Sequence[Contestant], image: Tensor, rounds: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure how long every contestant takes to load, and for an image, in turns.

    Args:
        contestants: What is timed; what is not installed gets no row.
        image: An image, 1 × channels × height × width.
        rounds: Timed runs of each.
        say: Function that is told what is not installed.

    Returns:
        A row for every contestant: `what`, `runtime`, `bytes`, `load s` (None where nothing is
        loaded), and `rounds ms`, the milliseconds of every round.
    """
    rows, runs = [], []
    for contestant in contestants:
        try:
            opened = [contestant.open() for _ in range(LOADS)]
        except NoRuntime as missing:
            say(str(missing))
            continue
        load = median(each.load_seconds for each in opened) or None
        rows.append(
            {
                "what": contestant.name,
                "runtime": opened[-1].runtime,
                "bytes": contestant.size,
                "load s": load,
            }
        )
        runs.append(partial(opened[-1].run, image))
    for row, spent in zip(rows, time_in_turns(runs, rounds), strict=True):
        row["rounds ms"] = [1e3 * seconds for seconds in spent]
    return rows


def time_in_turns(runs: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Time every function once per round, so that a busy machine slows all of them.

    Args:
        runs: Functions.
        rounds: Rounds that count.

    Returns:
        Seconds of every round, for each function.
    """
    spent: list[list[float]] = [[] for _ in runs]
    for number in range(WARM_UP + rounds):
        for seconds, run in zip(spent, runs, strict=True):
            # What ran before has filled the caches with weights of its own.
            run()
            taken = measure_seconds(run, CPU)
            if number >= WARM_UP:
                seconds.append(taken)
    return spent


def count_kernels(file: Path) -> Counter[str]:
    """Count the operators of a model as ONNX Runtime runs it, once it has fused what it can.

    Args:
        file: ONNX model.

    Raises:
        NoRuntime: ONNX Runtime is not installed.
    """
    try:
        onnx, runtime = map(importlib.import_module, ("onnx", "onnxruntime"))
    except ImportError as error:
        raise NoRuntime("ONNX Runtime is not installed; pip install onnx onnxruntime") from error
    with TemporaryDirectory() as folder:
        options = runtime.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 3
        runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        model = onnx.load(options.optimized_model_filepath)
    return Counter(node.op_type for node in model.graph.node)
