"""Post-training quantization from a float network to the figures of every stage."""

from __future__ import annotations

import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ompq.assignment import Assignment, uniform
from ompq.cost import FLOAT_BITS, bops
from ompq.data import Loader
from ompq.evaluation import Predictions, predict
from ompq.graph import NetworkGraph
from ompq.quantized import QuantizedNetwork
from ompq.quantizers import enabled
from ompq.runtime import say
from PTQ.activation_cache import ActivationCache
from PTQ.quantize import Reports, quantize_network, round_to_nearest
from PTQ.resume import FinishedBlocks
from PTQ.settings import Settings

_STATE = ".ptq_state"
CONTROL = "control"


@dataclass(frozen=True)
class StageRow:
    """One network of the final table.

    Attributes:
        name: Name of the network.
        size_mb: Model size in MB (2²⁰ bytes).
        bops_g: Bit operations for one image, in units of 10⁹.
        predictions: Predictions for the test images.
        seconds: Wall-clock seconds of the whole reconstruction that the network comes from; of the
            float one, of measuring it.
    """

    name: str
    size_mb: float
    bops_g: float
    predictions: Predictions
    seconds: float


@dataclass(frozen=True)
class QuantizationResult:
    """A quantized network, and the networks that it is compared with.

    Attributes:
        network: Quantized network.
        reports: Reports of its blocks, in execution order, and of the tuning.
        float_row: Row of the float network.
        rounded_row: Row of the network with weights rounded to nearest, activations in float.
        weights_row: Row of the quantized network, scales and biases tuned, with its activations
            in float.
        final_row: Row of the quantized network; `weights_row` itself where activations stay in
            float.
        integers_row: Row of the network of integers, which is deployed; None where activations stay
            in float.
        seconds: Wall-clock seconds of reconstruction and measurement.
    """

    network: QuantizedNetwork
    reports: Reports
    float_row: StageRow
    rounded_row: StageRow
    weights_row: StageRow
    final_row: StageRow
    integers_row: StageRow | None
    seconds: float

    @property
    def rows(self) -> list[StageRow]:
        """Return the row of every network once, the float one first."""
        rows = [self.float_row, self.rounded_row, self.weights_row]
        return rows if self.integers_row is None else [*rows, self.final_row, self.integers_row]

    @property
    def deployed_row(self) -> StageRow:
        """Return the row of the network that is written."""
        return self.final_row if self.integers_row is None else self.integers_row


@dataclass(frozen=True)
class QuantizationTask:
    """A float network, what it is quantized with, and the images that it is judged by.

    Attributes:
        graph: Float network, on the device to compute on.
        images: Calibration images, n × channels × height × width, normalised.
        test: Test images, with or without labels.
        settings: Settings of the reconstruction.
        folder: Folder in which finished blocks are remembered while a run lasts.
        resume: Whether to go on from the finished blocks that the folder holds.
        say: Function that is told what a user should know.
    """

    graph: NetworkGraph
    images: Tensor
    test: Loader
    settings: Settings
    folder: Path
    _: KW_ONLY
    resume: bool = False
    say: Callable[[str], None] = say

    def predict(self, module: nn.Module) -> Predictions:
        """Return the predictions of a network for the test images."""
        return predict(module, self.test, next(self.graph.module.parameters()).device)


def count_bit_operations(assignment: Assignment, act_quant: bool) -> float:
    """Count the bit operations for one image in 10⁹; float activations count with 32 bits.

    >>> from ompq.graph import Group
    >>> layer = Group(("fc",), tap="fc", role="body", params=0, ops=10**9)
    >>> assignment = uniform([layer], width=4, act_bits=8)
    >>> count_bit_operations(assignment, act_quant=True)
    32.0
    >>> count_bit_operations(assignment, act_quant=False)
    128.0
    """
    if act_quant:
        return assignment.bops_g
    groups = assignment.groups
    return bops(groups, assignment.widths, [FLOAT_BITS] * len(groups)) / 1e9


def measure_float(task: QuantizationTask, assignment: Assignment) -> StageRow:
    """Measure the float network.

    Args:
        task: Network and test images.
        assignment: Any assignment of the network; its groups tell size and operations.
    """
    start = time.perf_counter()
    widths = [FLOAT_BITS] * len(assignment.groups)
    predictions = task.predict(task.graph.module)
    seconds = time.perf_counter() - start
    return StageRow(
        "float",
        assignment.float_size_mb,
        bops(assignment.groups, widths, widths) / 1e9,
        predictions,
        seconds,
    )


def measure_rounded(task: QuantizationTask, assignment: Assignment) -> StageRow:
    """Measure the network with weights rounded to nearest and activations in float.

    Args:
        task: Network, test images and settings.
        assignment: Widths of the network's groups.
    """
    start = time.perf_counter()
    network = round_to_nearest(task.graph, assignment, task.settings)
    seconds = time.perf_counter() - start
    predictions = task.predict(network.module)
    operations = count_bit_operations(assignment, act_quant=False)
    return StageRow("rounded to nearest", assignment.size_mb, operations, predictions, seconds)


def quantize_and_measure(
    task: QuantizationTask,
    assignment: Assignment,
    float_row: StageRow,
    rounded_row: StageRow | None = None,
    state: str = "main",
) -> QuantizationResult:
    """Quantize a network by reconstruction, and measure it at every stage.

    Args:
        task: Network, images and settings.
        assignment: Widths of the network's groups.
        float_row: Row of the float network.
        rounded_row: Row of the network rounded to nearest; None to measure it here.
        state: Name under which finished blocks are remembered in the task's folder.

    Raises:
        OmpqError: Unusable images, no room for the values between blocks, or an unfinished run in
            the folder that this one cannot go on from.
    """
    start = time.perf_counter()
    network, reports = _reconstruct(task, assignment, state)
    rounded_row = rounded_row or measure_rounded(task, assignment)
    spent = sum(report.seconds for report in reports) + reports.tuning.seconds
    size = assignment.size_mb
    with enabled(network.module, False):
        operations = count_bit_operations(assignment, act_quant=False)
        predictions = task.predict(network.module)
        weights_row = StageRow("weights reconstructed", size, operations, predictions, spent)
    final_row, integers_row = weights_row, None
    if network.integers is not None:
        predictions = task.predict(network.module)
        final_row = StageRow("fully quantized", size, assignment.bops_g, predictions, spent)
        predictions = task.predict(network.integers.module)
        name = "integers" if network.integers.runs_on_integers else "integers (in part)"
        integers_row = StageRow(name, size, assignment.bops_g, predictions, spent)
    return QuantizationResult(
        network=network,
        reports=reports,
        float_row=float_row,
        rounded_row=rounded_row,
        weights_row=weights_row,
        final_row=final_row,
        integers_row=integers_row,
        seconds=time.perf_counter() - start,
    )


def prepare_state(
    task: QuantizationTask, assignment: Assignment, state: str = "main"
) -> tuple[ActivationCache, FinishedBlocks]:
    """Prepare the places for what a reconstruction keeps; called early, it refuses early.

    Args:
        task: Network, images and settings.
        assignment: Widths of the network's groups.
        state: Name under which finished blocks are remembered in the task's folder.

    Raises:
        OmpqError: No such place, or an unfinished run in the folder that this one cannot go on
            from.
    """
    device = next(task.graph.module.parameters()).device
    folder = task.folder / _STATE
    cache = ActivationCache(task.settings.cache_device, device, folder)
    fingerprint = compute_fingerprint(task, assignment)
    return cache, FinishedBlocks(folder / state, fingerprint, task.resume)


def _reconstruct(
    task: QuantizationTask, assignment: Assignment, state: str
) -> tuple[QuantizedNetwork, Reports]:
    """Quantize the network of a task; its finished blocks are remembered under the name `state`."""
    cache, finished = prepare_state(task, assignment, state)
    return quantize_network(
        task.graph,
        assignment,
        task.images,
        task.settings,
        cache=cache,
        finished=finished,
        say=task.say,
    )


def choose_control(assignment: Assignment) -> Assignment | None:
    """Choose the narrowest uniform assignment that is at least as large; None without another one.

    >>> from ompq.assignment import assign
    >>> from ompq.graph import Group
    >>> layers = [Group((n,), tap=n, role="body", params=64, ops=1) for n in ("conv1", "conv2")]
    >>> choose_control(assign(layers, "PTQ", [2, 4], act_bits=8)).bits
    [3, 3]
    """
    for width in range(2, 9):
        candidate = uniform(assignment.groups, width, assignment.act_bits)
        if candidate.size_mb >= assignment.size_mb:
            # A network of ends alone has no width to choose.
            is_other = bool(candidate.bits) and candidate.widths != assignment.widths
            return candidate if is_other else None
    return None


def measure_control(task: QuantizationTask, assignment: Assignment) -> StageRow:
    """Reconstruct and measure a uniform assignment, for comparison with the chosen one.

    Args:
        task: Network, images and settings.
        assignment: Uniform widths of the network's groups.
    """
    network, reports = _reconstruct(task, assignment, CONTROL)
    return StageRow(
        f"control: uniform {assignment.bits[0]}",
        assignment.size_mb,
        count_bit_operations(assignment, task.settings.act_quant),
        task.predict(network.deployed.module),
        sum(report.seconds for report in reports) + reports.tuning.seconds,
    )


def remove_state(folder: Path) -> None:
    """Remove the finished blocks that only a resumed run needs."""
    shutil.rmtree(folder / _STATE, ignore_errors=True)


def compute_fingerprint(task: QuantizationTask, assignment: Assignment) -> dict[str, Any]:
    """Compute what a resumed run must have in common with the one that was killed.

    Returns:
        JSON-ready settings, widths, and checksums of weights and calibration images. The keys are
        compared with those of earlier versions' unfinished runs.
    """
    settings = asdict(task.settings)
    # Where values are kept changes nothing of the result: a run may go on with another place.
    del settings["cache_device"]
    # Tuning comes after all blocks, and is done anew.
    del settings["tuning_iterations"]
    weights = 0
    for value in task.graph.module.state_dict().values():
        weights = zlib.crc32(value.cpu().contiguous().numpy().tobytes(), weights)
    return settings | {
        "weight bits": list(assignment.widths),
        "activation bits": list(assignment.activations),
        "weights of the network": weights,
        "calibration images": zlib.crc32(task.images.contiguous().numpy().tobytes()),
    }
