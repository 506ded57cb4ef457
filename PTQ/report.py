"""The printed table and the `results.json` of a post-training quantization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ompq.runtime import versions
from PTQ.pipeline import QuantizationResult, StageRow

FORMAT = "ompq-ptq-results/1"


def print_table(rows: Sequence[StageRow]) -> None:
    """Print one line per network; agreement is with the float network, which comes first."""
    first = rows[0].predictions
    labelled = first.has_labels
    shown = "   top-1 %  top-5 %" if labelled else ""
    print(f"\n{'network':<24} {'size MB':>9} {'BOPs G':>10}{shown} {'agrees %':>9} {'seconds':>8}")
    for row in rows:
        accuracy = ""
        if labelled:
            measured = row.predictions.accuracy()
            accuracy = f"   {measured.top1:>7.2f} {measured.top5:>8.2f}"
        agreement = row.predictions.agreement(first)
        print(
            f"{row.name:<24} {row.size_mb:>9.4f} {row.bops_g:>10.3f}{accuracy} "
            f"{agreement:>9.2f} {row.seconds:>8.1f}"
        )
    print(f"{len(first)} images; agreement is with the float network")


def build_results(
    result: QuantizationResult,
    control: StageRow | None,
    arguments: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Build the content of `results.json`; accuracies are null where the images have no labels.

    Args:
        result: Quantized network with the rows of its stages.
        control: Row of the uniform control; None without one.
        arguments: JSON-ready arguments of the run.
        seconds: Wall-clock seconds of the whole run.
    """
    final = result.deployed_row
    reference = result.float_row.predictions
    return {
        "format": FORMAT,
        "top1_fp32": _top1(result.float_row),
        "top1_before": _top1(result.rounded_row),
        "top1_weights": _top1(result.weights_row),
        "top1_simulated": _top1(result.final_row),
        "top1": _top1(final),
        "top5": final.predictions.accuracy().top5 if reference.has_labels else None,
        "agreement_before": result.rounded_row.predictions.agreement(reference),
        "agreement_weights": result.weights_row.predictions.agreement(reference),
        "agreement_simulated": result.final_row.predictions.agreement(reference),
        "agreement": final.predictions.agreement(reference),
        "num_eval": len(reference),
        "model_size_mb": final.size_mb,
        "float_size_mb": result.float_row.size_mb,
        "bops_g": final.bops_g,
        "seconds": seconds,
        "blocks": [report.to_json() for report in result.reports],
        "tuning": result.reports.tuning.to_json(),
        "control": None if control is None else _build_control(control, result.float_row),
        "arguments": dict(arguments),
        "versions": versions(),
    }


def _build_control(row: StageRow, float_row: StageRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "top1": _top1(row),
        "agreement": row.predictions.agreement(float_row.predictions),
        "model_size_mb": row.size_mb,
        "bops_g": row.bops_g,
        "seconds": row.seconds,
    }


def _top1(row: StageRow) -> float | None:
    return row.predictions.accuracy().top1 if row.predictions.has_labels else None
