"""What a search prints and draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mixed_bit.bit_search import SearchResult
from mixed_bit.comparison.pareto import FrontPoint, find_knee
from mixed_bit.sensitivity.features import Orthogonality
from mixed_bit.settings import PAPER_METRIC
from ompq.assignment import BitConfig
from ompq.data import unreadable_note
from ompq.graph import describe_float_parts
from ompq.plots import ACCENT, INK, SOFT, figure
from ompq.zoo import RANDOM_WEIGHTS, RANDOM_WEIGHTS_NOTE


def print_result(
    result: SearchResult, config: BitConfig, in_flags: Callable[[str], str] = str
) -> None:
    """Print the table of groups, the notes, the list, size and BOPs.

    Args:
        result: Result of a search.
        config: Configuration that was made of it.
        in_flags: Function that puts the flags of a script in the place of the fields that a note
            names.
    """
    _print_groups(result, config)
    for note in collect_notes(result, config):
        print(f"note: {in_flags(note)}")
    print(f"{_describe_work(result)}; " + _describe_proof(result))
    if result.distance is not None:
        print(result.distance.describe())
    print(f"Bit configuration ({config.quant_type}): {list(config.bits)}")
    if result.problem.act_widths:
        chosen = [entry["act_bits"] for entry in config.groups if entry["in_list"]]
        print(f"Activation bits: {chosen}")
    print(f"Quantization model is {config.model_size_mb:.4f} Mb")
    print(f"Original model is {config.details['float_size_mb']:.4f} Mb")
    acts = "mixed" if result.problem.act_widths else config.act_bits
    print(f"Quantization model BOPs is {config.bops_g:.4g} G (W mixed / A {acts})")
    peak, step = config.details["act_memory_kb"], config.details["act_memory_step"]
    print(f"Activations take {peak:.4f} KB for one image at most, at {step}")
    latency = config.details.get("latency_ms")
    if latency is not None:
        print(f"Quantization model latency is {latency:.4f} ms by the table")


def print_front(points: Sequence[FrontPoint]) -> None:
    """Print some twenty allocations of the front, and its knee, the smallest first.

    Args:
        points: Allocations of the front, the largest first.
    """
    marked = find_knee(points)
    step = max(1, len(points) // 20)
    print(f"{'size MB':>10} {'price':>12} {'mean bits':>10}  method")
    for index, point in enumerate(reversed(points)):
        if index % step and point is not marked:
            continue
        bits = point.result.bits
        mark = "  ← knee" if point is marked else ""
        print(
            f"{point.size_mb:>10.4f} {point.value:>12.4e} {sum(bits) / len(bits):>10.2f}  "
            f"{point.candidate}{mark}"
        )
    print(f"{len(points)} allocations; what follows is that of the knee")


def _describe_work(result: SearchResult) -> str:
    seconds = result.seconds
    solved = f"solve {seconds['solve']:.3f} s"
    if result.settings.chosen_metric == PAPER_METRIC and result.orthogonality is not None:
        estimator = "minibatch, unbiased" if result.orthogonality.unbiased else "exact"
        return (
            f"{result.num_images} images, {estimator} estimator; forward "
            f"{seconds['forward']:.2f} s, orthogonality {seconds['orthogonality']:.2f} s, {solved}"
        )
    passes = result.sensitivity.forward_passes
    return (
        f"{result.num_images} images, prices by {result.settings.chosen_metric}; the work of "
        f"{passes:.1f} forward passes, {seconds['prices']:.2f} s; {solved}"
    )


def _describe_proof(result: SearchResult) -> str:
    if result.allocation.optimal:
        return "proven optimal"
    return f"solver {result.settings.solver}, not proven optimal"


def _print_groups(result: SearchResult, config: BitConfig) -> None:
    names = [" + ".join(entry["layers"]) for entry in config.groups]
    width = min(max(map(len, names)), 60)
    columns = _collect_columns(result)
    heads = "".join(f" {head:>10}" for head, _ in columns)
    acts = "  act" if result.problem.act_widths else ""
    print(f"{'group':<{width}} {'params':>10}{heads} {'bits':>5}{acts}")
    for name, entry in zip(names, config.groups, strict=True):
        cells = "".join(f" {read(entry):>10}" for _, read in columns)
        act = f" {entry['act_bits']:>4}" if result.problem.act_widths else ""
        mark = " pinned" if entry["pinned"] else ""
        shown = name if len(name) <= width else name[: width - 1] + "…"
        print(f"{shown:<{width}} {entry['params']:>10}{cells} {entry['bits']:>5}{act}{mark}")


def _collect_columns(result: SearchResult) -> list[tuple[str, Callable[[Mapping[str, Any]], str]]]:
    """Return heads and cells of what the metric knows of a group."""
    columns: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = []
    if result.importance is not None:
        columns += [
            ("gamma", _make_number_cell("gamma", ".3f")),
            ("log c", _make_number_cell("log_importance", ".3f")),
        ]
    if result.settings.chosen_metric != PAPER_METRIC:
        columns += [
            (f"at {width} bits", _make_width_cell(str(width))) for width in result.problem.widths
        ]
    return columns


def _make_number_cell(key: str, form: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda entry: "-" if entry[key] is None else format(entry[key], form)


def _make_width_cell(width: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda entry: "-" if entry["prices"] is None else format(entry["prices"][width], ".2e")


def collect_notes(result: SearchResult, config: BitConfig) -> list[str]:
    """Collect what a user should know about how the result came about, one line each."""
    found = []
    if config.details["weights"] == RANDOM_WEIGHTS:
        found.append(RANDOM_WEIGHTS_NOTE)
    found += result.notes
    orthogonality = result.orthogonality
    if orthogonality is not None and orthogonality.unbiased:
        found.append(
            f"unbiased minibatch estimate over {orthogonality.num_batches} batches "
            "(Nguyen et al., arXiv:2010.15327)"
        )
    found += unreadable_note(config.details["skipped_images"])
    found += [
        f"the feature of {name} is the same for every image; it counts as redundant"
        for name in (orthogonality.constant if orthogonality is not None else ())
    ]
    graph = result.problem.graph
    found.append(describe_float_parts(graph.float_layers, graph.parameters))
    if result.allocation.note:
        found.append(result.allocation.note)
    return found


def draw_result(result: SearchResult, model: str, path: str | Path) -> None:
    """Draw the orthogonality (or the sensitivities), and each group's bits over its parameters."""
    with figure(path, 13, 5.6) as drawn:
        left, right = drawn.subplots(1, 2, width_ratios=(1, 1.35))
        if result.orthogonality is not None:
            _draw_matrix(drawn, left, result.orthogonality)
        else:
            _draw_sensitivity(drawn, left, result)
        _draw_bits(right, result)
        size = result.assignment.size_mb
        drawn.suptitle(
            f"{model}: {size:.2f} MB from {result.assignment.float_size_mb:.2f} MB "
            f"({result.settings.quant_type}, {result.settings.chosen_metric}, "
            f"{result.num_images} images)",
            color=INK,
        )


def _draw_sensitivity(drawn: Figure, axes: Axes, result: SearchResult) -> None:
    table = result.sensitivity.weights
    positive = table[table > 0]
    least = positive.min() if positive.size else 1.0
    image = axes.imshow(
        np.log10(np.maximum(table, least)), cmap="magma", aspect="auto", interpolation="nearest"
    )
    axes.set(
        title=f"sensitivity to each width ({result.settings.chosen_metric}, log10)", ylabel="group"
    )
    axes.set_xticks(
        range(len(result.problem.widths)), [f"{width} bits" for width in result.problem.widths]
    )
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    drawn.colorbar(image, ax=axes, shrink=0.85)


def _draw_matrix(drawn: Figure, axes: Axes, orthogonality: Orthogonality) -> None:
    matrix = orthogonality.matrix
    lowest = np.floor(matrix.min() * 10) / 10  # deep features are alike: show their differences
    image = axes.imshow(matrix, cmap="magma", vmin=min(lowest, 0.9), vmax=1)
    axes.set(title="how alike two groups' features are (ORM)", xlabel="group", ylabel="group")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    drawn.colorbar(image, ax=axes, shrink=0.85)


def _draw_bits(axes: Axes, result: SearchResult) -> None:
    assignment = result.assignment
    positions = np.arange(len(assignment.widths))
    colours = [ACCENT if listed else INK for listed in assignment.listed]
    axes.bar(positions, assignment.widths, color=colours, width=0.8)
    axes.set(title="bits per group (dark: pinned) over its parameters", xlabel="group")
    axes.set_ylabel("weight bits", color=ACCENT)
    axes.set_ylim(0, 8.6)
    axes.margins(x=0.01)
    params = axes.twinx()
    params.plot(positions, [g.params for g in assignment.groups], "o-", color=SOFT, ms=3, lw=1.2)
    params.set_yscale("log")
    params.set_ylabel("parameters", color="#5b87b0")
    if len(positions) <= 24:
        axes.set_xticks(positions, [g.name for g in assignment.groups], rotation=60, ha="right")
        axes.tick_params(axis="x", labelsize=7)
