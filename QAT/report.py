"""What fine-tuning prints, writes and draws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ompq.bitconfig import Assignment
from ompq.files import atomic_path
from ompq.fixed_point import IntegerNetwork
from ompq.metrics import Accuracy
from ompq.runtime import versions
from QAT.training import Progress

FORMAT = "ompq-qat-results/1"


def print_table(accuracies: Mapping[str, Accuracy], assignment: Assignment, seconds: float) -> None:
    """One line per network: float, quantized before training, trained."""
    print(f"\n{'network':<24} {'size MB':>9}   top-1 %  top-5 % {'seconds':>8}")
    for name, accuracy in accuracies.items():
        size = assignment.float_size_mb if name == "float" else assignment.size_mb
        spent = f"{seconds:>8.1f}" if name == "trained" else ""
        print(f"{name:<24} {size:>9.4f}   {accuracy.top1:>7.2f} {accuracy.top5:>8.2f} {spent}")
    print(f"{next(iter(accuracies.values())).count} images; BOPs {assignment.bops_g:.3f} G")


def to_json(
    accuracies: Mapping[str, Accuracy],
    progress: Progress,
    assignment: Assignment,
    network: IntegerNetwork,
    arguments: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """The content of `results.json`."""
    final = accuracies["trained"]
    return {
        "format": FORMAT,
        "top1_fp32": accuracies["float"].top1,
        "top1_before": accuracies["before training"].top1,
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
    """Loss and accuracy over the steps, beside the float network's accuracy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [entry["step"] for entry in progress.history]
    left.plot(steps, [entry["loss"] for entry in progress.history], marker="o", color="tab:blue")
    left.set(xlabel="step", ylabel="training loss")
    top1 = [entry["top1"] for entry in progress.history]
    right.plot(steps, top1, marker="o", color="tab:orange", label="integers")
    right.axhline(float_top1, linestyle="--", color="tab:gray", label="float")
    right.set(xlabel="step", ylabel="top-1 %")
    right.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
