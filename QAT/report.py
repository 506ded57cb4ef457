"""What fine-tuning prints, writes and draws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ompq.assignment import Assignment
from ompq.evaluation import Accuracy
from ompq.integer import IntegerNetwork
from ompq.plots import ACCENT, INK, SOFT, figure
from ompq.runtime import versions
from QAT.training import Progress

FORMAT = "ompq-qat-results/1"


def print_table(
    float_accuracy: Accuracy, final: Accuracy, assignment: Assignment, progress: Progress
) -> None:
    """Print one line per network: float, quantized before training, trained.

    Args:
        float_accuracy: Accuracy of the float network.
        final: Accuracy of the trained network.
        assignment: Widths of the quantized network.
        progress: Progress of the training, with the accuracy before it.
    """
    before = progress.history[0]
    float_mb, size_mb = assignment.float_size_mb, assignment.size_mb
    rows: list[tuple[str, float, float, float, str]] = [
        ("float", float_mb, float_accuracy.top1, float_accuracy.top5, ""),
        ("before training", size_mb, before["top1"] or 0.0, before["top5"] or 0.0, ""),
        ("trained (best)", size_mb, final.top1, final.top5, f"{progress.seconds:.1f}"),
    ]
    print(f"\n{'network':<24} {'size MB':>9} {'top-1 %':>8} {'top-5 %':>8} {'seconds':>8}")
    for name, size, top1, top5, seconds in rows:
        print(f"{name:<24} {size:>9.4f} {top1:>8.2f} {top5:>8.2f} {seconds:>8}")
    print(f"{final.count} images; BOPs {assignment.bops_g:.3f} G; {progress.step} steps")


def to_json(
    *,
    float_accuracy: Accuracy,
    final: Accuracy,
    progress: Progress,
    assignment: Assignment,
    network: IntegerNetwork,
    arguments: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Return the content of `results.json`.

    Args:
        float_accuracy: Accuracy of the float network.
        final: Accuracy of the trained network.
        progress: Progress of the training, with the accuracy before it.
        assignment: Widths of the quantized network.
        network: The trained network.
        arguments: Command line, JSON-ready.
        seconds: Seconds that the whole run took.
    """
    return {
        "format": FORMAT,
        "top1_fp32": float_accuracy.top1,
        "top1_before": progress.history[0]["top1"],
        "top1_re_estimated": progress.re_estimated_top1,
        "top1": final.top1,
        "top5": final.top5,
        "num_eval": final.count,
        "model_size_mb": assignment.size_mb,
        "float_size_mb": assignment.float_size_mb,
        "bops_g": assignment.bops_g,
        "seconds": seconds,
        "training_seconds": progress.seconds,
        "steps": progress.step,
        "history": progress.history,
        "bits": list(assignment.widths),
        "groups": [list(group.layers) for group in assignment.groups],
        "integers_only": network.runs_on_integers,
        "float_operations": network.float_operations,
        "arguments": dict(arguments),
        "versions": versions(),
    }


def draw(progress: Progress, float_top1: float, path: Path) -> None:
    """Draw loss and accuracy over the steps, beside the float network's accuracy.

    Args:
        progress: Progress of the training.
        float_top1: Top-1 accuracy of the float network, in per cent.
        path: Path of the image file.
    """
    steps = [entry["step"] for entry in progress.history]
    losses = [entry["loss"] for entry in progress.history[1:]]
    top1 = [entry["top1"] for entry in progress.history]
    with figure(path, 8, 3.2) as drawn:
        left, right = drawn.subplots(1, 2)
        left.plot(steps[1:], losses, marker="o", color=INK)
        left.set(xlabel="step", ylabel="training loss")
        right.plot(steps, top1, marker="o", color=ACCENT, label="integers")
        right.axhline(float_top1, linestyle="--", color=SOFT, label="float")
        right.set(xlabel="step", ylabel="top-1 %")
        right.legend()
