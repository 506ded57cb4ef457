"""What a search prints and draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mixed_bit.search import SearchResult
from ompq.bitconfig import BitConfig
from ompq.plots import ACCENT, INK, SOFT, figure


def print_result(result: SearchResult, config: BitConfig) -> None:
    """The table of groups, the notes, the list, size and BOPs."""
    _print_groups(config)
    for note in notes(result, config):
        print(f"note: {note}")
    seconds = result.seconds
    print(
        f"{config.details['num_images']} images, {config.details['estimator']} estimator; "
        f"forward {seconds['forward']:.2f} s, orthogonality {seconds['orthogonality']:.2f} s, "
        f"solve {seconds['solve']:.3f} s; "
        + ("proven optimal" if config.details["optimal"] else f"solver {config.details['solver']}")
    )
    print(f"Bit configuration ({config.quant_type}): {list(config.bits)}")
    print(f"Quantization model is {config.model_size_mb:.4f} Mb")
    print(f"Original model is {config.details['float_size_mb']:.4f} Mb")
    print(f"Quantization model BOPs is {config.bops_g:.2f} G (W mixed / A {config.act_bits})")


def _print_groups(config: BitConfig) -> None:
    names = [" + ".join(entry["layers"]) for entry in config.groups]
    width = min(max(map(len, names)), 60)
    print(f"{'group':<{width}} {'params':>10} {'gamma':>8} {'log c':>10} {'bits':>5}")
    for name, entry in zip(names, config.groups, strict=True):
        measured = entry["gamma"] is not None
        gamma = f"{entry['gamma']:8.3f}" if measured else f"{'-':>8}"
        log_c = f"{entry['log_importance']:10.3f}" if measured else f"{'-':>10}"
        mark = " pinned" if entry["pinned"] else ""
        shown = name if len(name) <= width else name[: width - 1] + "…"
        print(f"{shown:<{width}} {entry['params']:>10} {gamma} {log_c} {entry['bits']:>5}{mark}")


def notes(result: SearchResult, config: BitConfig) -> list[str]:
    """What the user should know about how the result came about, one line each."""
    found = []
    if config.details["weights"] == "random initialisation":
        found.append("the network has random weights; give a checkpoint with --path")
    if result.orthogonality.unbiased:
        found.append(
            f"unbiased minibatch estimate over {result.orthogonality.num_batches} batches "
            "(Nguyen et al., arXiv:2010.15327)"
        )
    skipped = config.details["skipped_images"]
    if skipped:
        found.append(f"{len(skipped)} unreadable image(s) skipped: {', '.join(skipped[:3])}")
    found += [
        f"the feature of {name} is the same for every image; it counts as redundant"
        for name in result.orthogonality.constant
    ]
    floats = config.details["float_layers"]
    if floats:
        shown = ", ".join(f"{name} ({why})" for name, why in list(floats.items())[:3])
        found.append(f"{len(floats)} part(s) stay in float: {shown}")
    if result.allocation.note:
        found.append(result.allocation.note)
    return found


def draw(result: SearchResult, model: str, path: str | Path) -> None:
    """Heat map of the orthogonality matrix, and the bits of each group over its parameters."""
    with figure(path, 13, 5.6) as drawn:
        left, right = drawn.subplots(1, 2, width_ratios=(1, 1.35))
        _draw_matrix(drawn, left, result)
        _draw_bits(right, result)
        size = result.assignment.size_mb
        drawn.suptitle(
            f"{model}: {size:.2f} MB from {result.assignment.float_size_mb:.2f} MB "
            f"({result.settings.quant_type}, {result.orthogonality.num_images} images)",
            color=INK,
        )


def _draw_matrix(drawn: Figure, axes: Axes, result: SearchResult) -> None:
    matrix = result.orthogonality.matrix
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
