"""The parts of a report: each turns a run into markup, or into nothing where the run has none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ompq.report.figures import Bar, Curve, draw_bars, draw_curves, draw_matrix, draw_sizes
from ompq.report.markup import element, embed, number, significant, table, text
from ompq.report.reading import GroupRow, Run

# Of a class: ImageNet's are lists of synonyms.
_LONGEST_NAME = 40
_DECIBELS = {"weight": "its weight", "given": "what it reads", "own": "its own", "output": "in all"}


def describe_run(run: Run) -> str:
    """Write all that a run found, in the order in which it is asked for."""
    parts = [
        show_tiles(run),
        show_sizes(run),
        show_bits(run),
        show_front(run),
        show_curves(run),
        show_blocks(run),
        show_debug(run),
        show_changes(run),
        show_comparison(run),
        show_orthogonality(run),
        show_layers(run),
        show_origin(run),
    ]
    return "".join(parts)


def collect_figures(run: Run) -> dict[str, str]:
    """Return the figures that a run is judged by, as markup, by what they are."""
    held = run.main
    count = held.get("num_eval")
    found = {
        "float top-1": _accuracy(held, "top1_fp32", count),
        "rounded top-1": _accuracy(held, "top1_before", count),
        "quantized top-1": _accuracy(held, "top1", count),
        "agrees with float": number(held.get("agreement"), 2, " %", "agreement"),
        "size": number(held.get("model_size_mb"), 4, " MB", "model_size_mb"),
        "float size": number(held.get("float_size_mb"), 4, " MB", "float_size_mb"),
        "bit operations": number(held.get("bops_g"), 3, " G", "bops_g"),
        "activations in memory": number(held.get("act_memory_kb"), 1, " KB", "act_memory_kb"),
        "time": number(_seconds(held), 1, " s"),
        "quantized parameters": _parameters(held),
    }
    return {name: shown for name, shown in found.items() if shown != "–"}


def show_tiles(run: Run) -> str:
    """Write the figures that a run is judged by, side by side."""
    tiles = [
        element("div", element("dt", text(name)), element("dd", shown))
        for name, shown in collect_figures(run).items()
    ]
    return element("dl", *tiles, class_="tiles") if tiles else ""


def show_sizes(run: Run) -> str:
    """Draw the size beside that of the float network and of uniform widths."""
    own, whole = run.main.get("model_size_mb"), run.main.get("float_size_mb")
    if own is None or whole is None:
        return ""
    uniform = run.uniform_mb().items()
    rows = [("float", whole, False)]
    rows += [(f"{width} bits everywhere", size, False) for width, size in reversed([*uniform])]
    rows.append(("these bits", own, True))
    return _section("Size", draw_sizes(sorted(rows, key=lambda row: -row[1])))


def show_bits(run: Run) -> str:
    """Draw the bits of every group over its parameters."""
    groups = run.groups
    if not groups:
        return ""
    blocks = _find_blocks(run)
    bars = [
        Bar(group.name, group.bits, group.params, group.listed, _tell(group, blocks))
        for group in groups
    ]
    note = "Dark bars: pinned, not in the bit list. Point at a bar for all that is known of it."
    return _section("Bits per group", draw_bars(bars), note)


def show_front(run: Run) -> str:
    """Draw the front of sizes, with the bits of the point that is chosen."""
    points = [] if run.front is None else run.front["points"]
    if not points:
        return ""
    told = [
        (p["model_size_mb"], p["value"], f"{p['model_size_mb']:.4f} MB: {p['value']:.4g}")
        for p in points
    ]
    curve = Curve("proven optimal bits of every size", told)
    drawn = draw_curves([curve], "size, MB", "what it costs", logarithmic=True)
    knee = next((place for place, point in enumerate(points) if point["knee"]), 0)
    chosen = element("div", class_="chosen", aria_live="polite")
    data = embed({"points": points, "chosen": knee})
    whole = element("div", drawn, chosen, data, class_="front")
    return _section("Sizes and what they cost", whole, "Choose a point to see its bits.")


def show_curves(run: Run) -> str:
    """Draw the loss and the accuracy of fine-tuning over its steps."""
    history = [] if run.results is None else run.results.get("history", [])
    if not history:
        return ""
    losses = [(e["step"], e["loss"]) for e in history if e.get("loss") is not None]
    accuracies = [(e["step"], e["top1"]) for e in history if e.get("top1") is not None]
    drawn = ""
    for title, pairs, level in (
        ("top-1 of the integers, %", accuracies, run.main.get("top1_fp32")),
        ("training loss", losses, None),
    ):
        if pairs:
            points = [(x, y, f"step {x}: {y:.4g}") for x, y in pairs]
            drawn += draw_curves([Curve(title, points)], "step", title, level=level)
    if not drawn:
        return ""
    note = "" if run.main.get("top1_fp32") is None else "Dashed: the float network."
    return _section("Fine-tuning", element("div", drawn, class_="pair"), note)


def show_blocks(run: Run) -> str:
    """Write what reconstruction did to every block, and which kept their rounding."""
    blocks = [] if run.results is None else run.results.get("blocks", [])
    if not blocks:
        return ""
    rows = [
        [
            text(block["name"]),
            significant(block["loss_before"]),
            significant(block["loss_after"]),
            text(block["kept"]),
            significant(block["act_loss_before"]),
            significant(block["act_loss_after"]),
            text(block["act_kept"]),
            number(block["seconds"], 1),
        ]
        for block in blocks
    ]
    heads = "block,rounded,learned,weights kept,scales searched,scales learned,scales kept,seconds"
    whole = table(heads.split(","), rows)
    before = _curve("before", blocks, "loss_before")
    after = _curve("after", blocks, "loss_after")
    drawn = ""
    if before.points and after.points:
        drawn = draw_curves([before, after], "block", "loss of the weights", logarithmic=True)
    return _section("Reconstruction", drawn + whole, _tell_tuning(run))


def show_debug(run: Run) -> str:
    """Write the layers beside the float ones, those with the most noise of their own first."""
    layers = [] if run.debug is None else run.debug["layers"]
    if not layers:
        return ""
    ordered = sorted(layers, key=lambda e: math.inf if e["own"] is None else e["own"])
    rows = [
        [
            text(entry["name"]),
            text(entry["bits"]),
            text("" if entry["act_bits"] is None else entry["act_bits"]),
            *(number(entry[key], 1) for key in _DECIBELS),
            number(entry["clipped"] and 100 * entry["clipped"], 2),
            text("–" if entry["dead_channels"] is None else entry["dead_channels"]),
            text(entry["hint"]),
        ]
        for entry in ordered
    ]
    heads = ["layer", "W", "A", *_DECIBELS.values(), "clipped %", "vanished", "what helps"]
    curves = [
        Curve(
            title,
            [
                (i, e[key], f"{e['name']}: {e[key]:.1f} dB")
                for i, e in enumerate(layers)
                if e[key] is not None
            ],
        )
        for key, title in (
            ("own", "for exact inputs"),
            ("output", "in the whole network"),
            ("weight", "its weight"),
        )
    ]
    curves = [curve for curve in curves if curve.points]
    drawn = draw_curves(curves, "layer", "signal to noise, dB") if curves else ""
    note = "Signal to noise in decibels, beside the float network; worst first."
    return _section("Layers beside the float network", drawn + table(heads, rows), note)


def show_changes(run: Run) -> str:
    """Show images whose class is another one than the float network's, with both answers."""
    held = run.changes
    if held is None:
        return ""
    names = held["class_names"]

    def name(index: int | None) -> str:
        if index is None or index < 0:
            return "–"
        known = names[index] if index < len(names) else str(index)
        return known if len(known) <= _LONGEST_NAME else known[: _LONGEST_NAME - 1] + "…"

    cards = []
    for shown in held["images"]:
        right = [element("span", text(f"is {name(shown['label'])}"))] if shown["label"] >= 0 else []
        said = f"{name(shown['float'])} → {name(shown['quantized'])}"
        picture = f'<img alt="{text(said)}" src="{text(shown["picture"])}">'
        cards.append(
            element("figure", picture, element("figcaption", element("b", text(said)), *right))
        )
    note = (
        f"{held['changed']} of {held['num_images']} images have another class than in the float "
        f"network ({held['repaired']} of them for the better, {held['broken']} for the worse)."
        if held["labelled"]
        else f"{held['changed']} of {held['num_images']} images have another class."
    )
    return _section("Answers that changed", element("div", *cards, class_="images"), note)


def show_comparison(run: Run) -> str:
    """Write the ways to allocate bits side by side."""
    if run.comparison is None:
        return ""
    rows = [
        [
            text(row["method"]),
            number(row["budget_mb"], 4),
            number(row["size_mb"], 4),
            significant(row["kl"]),
            number(row["agreement"], 2),
            number(row["top1"], 2),
        ]
        for row in run.comparison["rows"]
    ]
    heads = ["method", "budget MB", "size MB", "divergence, nats", "agrees %", "top-1 %"]
    found = table(heads, rows)
    ranks = [
        [
            text(r["method"]),
            number(r["rho"], 3),
            f"{number(r['low'])} … {number(r['high'])}",
            significant(r["passes"]),
        ]
        for r in run.comparison.get("correlations", [])
    ]
    if ranks:
        found += table(["method", "rank correlation", "95 % interval", "forward passes"], ranks)
    return _section("Ways to allocate bits", found)


def show_orthogonality(run: Run) -> str:
    """Draw how alike the features of two groups are."""
    if run.orthogonality is None:
        return ""
    names = [group.name for group in run.groups if group.listed]
    if len(names) != len(run.orthogonality):
        names = [str(index) for index in range(len(run.orthogonality))]
    note = "How alike the features of two groups are: the cosine of their centred Gram matrices."
    return _section("Orthogonality", draw_matrix(run.orthogonality, names), note)


def show_layers(run: Run) -> str:
    """Write every group with its shapes, costs and sensitivities, to be sorted."""
    groups = run.groups
    if not groups:
        return ""
    widths = sorted({width for group in groups for width in group.sensitivities})
    rows = [
        [
            text(", ".join(group.layers)),
            text(", ".join("×".join(map(str, shape)) for shape in group.shapes)),
            text("–" if group.params is None else group.params),
            text("–" if group.ops is None else group.ops),
            text(group.bits),
            text("–" if group.act_bits is None else group.act_bits),
            *(significant(group.sensitivities.get(width)) for width in widths),
        ]
        for group in groups
    ]
    heads = ["layers", "shape", "parameters", "operations", "bits", "activation bits"]
    heads += [f"cost at {width}" for width in widths]
    note = "A click on a head sorts; costs are what the search measured for a width."
    return _section("Layers", table(heads, rows), note)


def show_origin(run: Run) -> str:
    """Write what a result came from: command, seed, versions, what stays in float."""
    held = run.main
    seed = held.get("seed", held.get("arguments", {}).get("seed"))
    rows = [("folder", str(run.folder)), ("command", held.get("command")), ("seed", seed)]
    rows += [("weights", held.get("weights")), ("metric", held.get("metric"))]
    rows += [(f"version of {name}", version) for name, version in held.get("versions", {}).items()]
    rows += [(f"in float: {name}", why) for name, why in held.get("float_layers", {}).items()]
    listed = [
        element("div", element("dt", text(name)), element("dd", text(value)))
        for name, value in rows
        if value is not None
    ]
    return _section("Where it comes from", element("dl", *listed, class_="origin"))


def show_side_by_side(runs: Sequence[Run], titles: Sequence[str]) -> str:
    """Write the figures of several runs in one table, a column each."""
    figures = [collect_figures(run) for run in runs]
    names = list(dict.fromkeys(name for found in figures for name in found))
    rows = [[text(name), *(found.get(name, "–") for found in figures)] for name in names]
    return _section("Side by side", table(["", *titles], rows))


def _section(title: str, content: str, note: str = "") -> str:
    quiet = element("p", text(note), class_="quiet") if note else ""
    return element("section", element("h2", text(title)), quiet, content)


def _accuracy(held: dict[str, Any], key: str, count: int | None) -> str:
    """Write an accuracy in per cent with its standard error."""
    value = held.get(key)
    if value is None:
        return "–"
    shown = number(value, 2, " %", key)
    if not count:
        return shown
    share = value / 100
    error = 100 * math.sqrt(max(0.0, share * (1 - share)) / count)
    return shown + element(
        "small", text(f" ± {error:.2f}"), title=f"standard error of {count} images"
    )


def _seconds(held: dict[str, Any]) -> float | None:
    return held.get("seconds", held.get("timing", {}).get("total"))


def _parameters(held: dict[str, Any]) -> str:
    counted = held.get("parameters")
    if not counted:
        return "–"
    return text(f"{counted['quantized']:,} of {counted['total']:,}".replace(",", "\u202f"))


def _find_blocks(run: Run) -> dict[str, dict[str, Any]]:
    """Return the block that reconstructed a layer, by the layer's name."""
    blocks = [] if run.results is None else run.results.get("blocks", [])
    return {layer: block for block in blocks for layer in block["layers"]}


def _tell(group: GroupRow, blocks: dict[str, dict[str, Any]]) -> str:
    """Tell all that is known of a group, a line each."""
    lines = [", ".join(group.layers)]
    lines += ["shape " + "×".join(map(str, shape)) for shape in group.shapes]
    lines.append(f"{group.bits} bits" + (f", reads {group.act_bits}" if group.act_bits else ""))
    if group.params is not None:
        lines.append(f"{group.params} parameters")
    if group.ops is not None:
        lines.append(f"{group.ops} operations")
    lines += [f"costs {cost:.3g} at {width} bits" for width, cost in group.sensitivities.items()]
    block = blocks.get(group.name)
    if block is not None and None not in (block["loss_before"], block["loss_after"]):
        lines.append(
            f"loss of {block['name']}: {block['loss_before']:.3g} → {block['loss_after']:.3g}"
        )
    return "\n".join(lines)


def _curve(title: str, blocks: Sequence[dict[str, Any]], key: str) -> Curve:
    return Curve(
        title,
        [
            (place, block[key], f"{block['name']}: {block[key]:.4g}")
            for place, block in enumerate(blocks)
            if block[key] is not None
        ],
    )


def _tell_tuning(run: Run) -> str:
    tuning = None if run.results is None else run.results.get("tuning")
    if not tuning or not tuning["iterations"] or None in (tuning["before"], tuning["after"]):
        return ""
    return (
        f"Tuning of all scales together: divergence {tuning['before']:.3g} → "
        f"{tuning['after']:.3g} on the calibration images."
    )
