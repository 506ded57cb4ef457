"""Post-training quantization from a float network to its figures."""

from __future__ import annotations

import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ompq.bitconfig import Assignment, uniform
from ompq.cost import bops
from ompq.data import Loader
from ompq.graph import NetworkGraph
from ompq.metrics import Predictions, predict
from ompq.quantized import QuantizedNetwork
from ompq.quantizers import enabled
from ompq.runtime import say
from ompq.widths import FLOAT_BITS
from PTQ.cache import Cache
from PTQ.recovery import Recovery
from PTQ.results import PartReport
from PTQ.settings import Settings
from PTQ.sweep import quantize_network, rounded

_STATE = ".ptq_state"


@dataclass(frozen=True)
class Row:
    """One network of the final table: what it weighs, what it says, what it took to make."""

    name: str
    size_mb: float
    bops_g: float
    predictions: Predictions
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """A quantized network, how its parts were learned, and the networks it is compared with.

    `rows` are float, rounded, weights, quantized (the last only with quantized activations).
    """

    network: QuantizedNetwork
    reports: Sequence[PartReport]
    float_row: Row
    rounded_row: Row
    weights_row: Row
    final_row: Row
    seconds: float

    @property
    def rows(self) -> list[Row]:
        """Every network once."""
        rows = [self.float_row, self.rounded_row, self.weights_row, self.final_row]
        return rows if self.final_row is not self.weights_row else rows[:-1]


@dataclass(frozen=True)
class Task:
    """A float network, the images that it is quantized with, and those that it is judged by."""

    graph: NetworkGraph
    images: Tensor
    test: Loader
    settings: Settings
    folder: Path
    resume: bool = False
    say: Callable[[str], None] = say

    def predictions(self, module: nn.Module) -> Predictions:
        """What a network says to the images of the test."""
        return predict(module, self.test, next(self.graph.module.parameters()).device)


def bit_operations(assignment: Assignment, act_quant: bool) -> float:
    """BOPs in 10⁹; activations in float count with 32 bits."""
    if act_quant:
        return assignment.bops_g
    groups = assignment.groups
    return bops(groups, assignment.widths, [FLOAT_BITS] * len(groups)) / 1e9


def float_row(task: Task, assignment: Assignment) -> Row:
    """The float network."""
    start = time.perf_counter()
    ops = sum(group.ops for group in assignment.groups)
    predictions = task.predictions(task.graph.module)
    seconds = time.perf_counter() - start
    return Row("float", assignment.float_size_mb, ops * FLOAT_BITS**2 / 1e9, predictions, seconds)


def rounded_row(task: Task, assignment: Assignment) -> Row:
    """Weights rounded to nearest, activations in float."""
    start = time.perf_counter()
    network = rounded(task.graph, assignment, task.settings)
    seconds = time.perf_counter() - start
    predictions = task.predictions(network.module)
    operations = bit_operations(assignment, act_quant=False)
    return Row("rounded to nearest", assignment.size_mb, operations, predictions, seconds)


def post_training_quantization(
    task: Task, assignment: Assignment, first: Row, nearest: Row | None = None, state: str = "main"
) -> Outcome:
    """Reconstruct a network and measure every stage of it.

    Args:
        task: what to quantize, with what, and how.
        assignment: the widths.
        first: the float network's row.
        nearest: the rounded network's row, if it is known already.
        state: name under which finished parts are remembered in `task.folder`.
    """
    start = time.perf_counter()
    network, reports = _reconstructed(task, assignment, state)
    nearest = nearest or rounded_row(task, assignment)
    spent = sum(report.seconds for report in reports)
    size = assignment.size_mb
    with enabled(network.module, False):
        operations = bit_operations(assignment, act_quant=False)
        said = task.predictions(network.module)
        weights = Row("weights reconstructed", size, operations, said, spent)
    final = weights
    if task.settings.act_quant:
        said = task.predictions(network.module)
        final = Row("fully quantized", size, assignment.bops_g, said, spent)
    seconds = time.perf_counter() - start
    return Outcome(network, reports, first, nearest, weights, final, seconds)


def _reconstructed(
    task: Task, assignment: Assignment, state: str
) -> tuple[QuantizedNetwork, list[PartReport]]:
    """The quantized network; its finished parts are remembered as `state`."""
    device = next(task.graph.module.parameters()).device
    folder = task.folder / _STATE
    recovery = Recovery(folder / state, fingerprint(task, assignment), task.resume)
    cache = Cache(task.settings.cache_device, device, folder)
    return quantize_network(
        task.graph, assignment, task.images, task.settings, cache, recovery, task.say
    )


def control_assignment(assignment: Assignment) -> Assignment | None:
    """The narrowest uniform configuration of at least the same size; None if there is no other."""
    for width in range(2, 9):
        candidate = uniform(assignment.groups, width, assignment.act_bits)
        if candidate.size_mb >= assignment.size_mb:
            return None if candidate.widths == assignment.widths else candidate
    return None


def control_row(task: Task, assignment: Assignment) -> Row:
    """A uniform configuration, treated like the one that it is compared with."""
    network, reports = _reconstructed(task, assignment, "control")
    return Row(
        f"control: uniform {assignment.bits[0]}",
        assignment.size_mb,
        bit_operations(assignment, task.settings.act_quant),
        task.predictions(network.module),
        sum(report.seconds for report in reports),
    )


def forget(folder: Path) -> None:
    """Remove what only a resumed run needs."""
    shutil.rmtree(folder / _STATE, ignore_errors=True)


def fingerprint(task: Task, assignment: Assignment) -> dict[str, Any]:
    """What a resumed run must have in common with the one that was killed."""
    settings = asdict(task.settings)
    del settings["cache_device"]
    weights = 0
    for value in task.graph.module.state_dict().values():
        weights = zlib.crc32(value.cpu().contiguous().numpy().tobytes(), weights)
    return settings | {
        "weight bits": list(assignment.widths),
        "activation bits": list(assignment.activations),
        "weights of the network": weights,
        "calibration images": zlib.crc32(task.images.contiguous().numpy().tobytes()),
    }
