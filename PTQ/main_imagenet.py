"""Quantize a trained network after training, block by block, from about a thousand images."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from ompq.script import interruptible_imports, run_script

with interruptible_imports():
    import argparse
    import time
    from dataclasses import dataclass
    from typing import Any

    from ompq import artifact
    from ompq.assignment import Assignment
    from ompq.data import unreadable_note
    from ompq.errors import OmpqError
    from ompq.evaluation import doubt_accuracy
    from ompq.files import check_writable, lock_folder, set_aside, write_json
    from ompq.graph import check_network, describe_float_parts, trace
    from ompq.options import (
        check_classes,
        json_ready,
        load_requested_network,
        make_evaluation_loader,
        name_outputs,
        print_images,
    )
    from ompq.preprocess import Preprocess
    from ompq.report import add_report
    from ompq.report.changes import FILE as CHANGES
    from ompq.report.changes import find_changes
    from ompq.report.entries import describe_groups
    from ompq.report.page import FILE as REPORT
    from ompq.runtime import Ranks, resolve_device, seed_everything
    from ompq.stored import evaluate_stored
    from ompq.zoo import RANDOM_WEIGHTS, RANDOM_WEIGHTS_NOTE, Network
    from PTQ.options import (
        build_parser,
        read_assignment,
        read_calibration_images,
        read_settings,
    )
    from PTQ.pipeline import (
        CONTROL,
        QuantizationResult,
        QuantizationTask,
        StageRow,
        choose_control,
        measure_control,
        measure_float,
        measure_rounded,
        prepare_state,
        quantize_and_measure,
        remove_state,
    )
    from PTQ.report import build_results, print_table

RESULTS = (artifact.FILE, "results.json", CHANGES)
# What other commands wrote of an earlier result, which is set aside with it.
_OF_RESULTS = (*RESULTS, REPORT, "debug.json", "debug.png")


@dataclass(frozen=True)
class _Prepared:
    """Everything that a run quantizes and measures.

    Attributes:
        network: Float network as it was loaded.
        preprocess: Preprocessing of its images.
        assignment: Widths of its groups.
        task: Traced network, images and settings.
        skipped: Unreadable calibration images.
    """

    network: Network
    preprocess: Preprocess
    assignment: Assignment
    task: QuantizationTask
    skipped: list[str]


def quantize(arguments: argparse.Namespace) -> dict[str, Any]:
    """Quantize, print the table, write `quantized.safetensors` and `results.json`.

    Args:
        arguments: Arguments of `build_parser`.

    Returns:
        The content of `results.json`.

    Raises:
        OmpqError: Something that the user asked for cannot be done.
    """
    start = time.perf_counter()
    prepared = _prepare(arguments)
    task, assignment = prepared.task, prepared.assignment
    control = _choose_control(assignment) if arguments.control else None
    prepare_state(task, assignment)
    if control is not None:
        prepare_state(task, control, CONTROL)
    _print_task(arguments, prepared)
    float_row = measure_float(task, assignment)
    _print_row("float", float_row)
    arguments.parser.print_notes(_doubt(prepared, float_row))
    rounded_row = None
    if arguments.test_before_calibration:
        rounded_row = measure_rounded(task, assignment)
        _print_row("rounded to nearest, before reconstruction", rounded_row)
    result = quantize_and_measure(task, assignment, float_row, rounded_row)
    control_row = None if control is None else measure_control(task, control)
    content = build_results(result, control_row, json_ready(arguments), time.perf_counter() - start)
    content["bits"] = list(assignment.widths)
    content["parameters"] = task.graph.parameters.to_json()
    content["float_layers"] = dict(task.graph.float_layers)
    content["skipped_images"] = prepared.skipped + task.test.skipped
    content["groups"] = [list(group.layers) for group in assignment.groups]
    content["allocation"] = describe_groups(task.graph, assignment)
    content["command"] = arguments.parser.command
    _write(prepared, result, content)
    arguments.parser.print_notes(unreadable_note(task.test.skipped))
    print_table([*result.rows, *([control_row] if control_row else [])])
    written = [*RESULTS, *add_report(task.folder, arguments.parser.print_note)]
    print(f"written to {task.folder}/: {' '.join(written)}")
    return content


def _prepare(arguments: argparse.Namespace) -> _Prepared:
    """Load network and images, and check that they and the options go together."""
    settings = read_settings(arguments)
    check_writable(arguments.output_dir)
    device = resolve_device(arguments.device)
    network, preprocess = load_requested_network(arguments)
    found, preprocess = read_calibration_images(arguments, preprocess)
    images = found.images
    side = preprocess.input_size
    graph = trace(network.module.to(device), (preprocess.channels, side, side))
    test = make_evaluation_loader(
        arguments, preprocess, arguments.batch_size, num_classes=graph.num_outputs
    )
    print_images(arguments, preprocess, [*found.notes, *test.notes])
    graph = check_network(graph, images, arguments.parser.print_note)
    arguments.parser.print_notes(check_classes(test.num_classes, graph.num_outputs))
    task = QuantizationTask(
        graph=graph,
        images=images,
        test=test,
        settings=settings,
        folder=arguments.output_dir,
        resume=arguments.resume,
    )
    return _Prepared(network, preprocess, read_assignment(arguments, graph), task, found.skipped)


def _doubt(prepared: _Prepared, float_row: StageRow) -> list[str]:
    """Return a note where the float network is hardly better than chance, and nobody knows why."""
    predictions = float_row.predictions
    if prepared.network.source == RANDOM_WEIGHTS or not predictions.has_labels:
        return []
    accuracy = predictions.accuracy()
    return doubt_accuracy(accuracy.top1, accuracy.count, prepared.task.graph.num_outputs)


def _choose_control(assignment: Assignment) -> Assignment | None:
    control = choose_control(assignment)
    if control is None:
        print("note: there is no other uniform configuration as large, and so no control")
    return control


def _write(prepared: _Prepared, result: QuantizationResult, content: dict[str, Any]) -> None:
    """Write the result files; those of an earlier run are moved aside, the state is removed."""
    folder = prepared.task.folder
    earlier = set_aside(folder, _OF_RESULTS)
    if earlier is not None:
        print(f"note: the result that was in {folder}/ is now in {earlier}/")
    class_names = name_outputs(prepared.task.test, prepared.task.graph.num_outputs)
    artifact.save_quantized(
        folder / artifact.FILE,
        result.network.deployed,
        prepared.assignment,
        source=prepared.network,
        preprocess=prepared.preprocess,
        class_names=class_names,
    )
    write_json(folder / "results.json", content)
    expected, found = result.float_row.predictions, result.deployed_row.predictions
    changes = find_changes(expected, found, prepared.task.test, prepared.preprocess)
    write_json(folder / CHANGES, changes.to_json(class_names))
    # Only now: killed before, the run is resumed from its finished blocks.
    remove_state(folder)


def _print_task(arguments: argparse.Namespace, prepared: _Prepared) -> None:
    """Print what is quantized to which widths, and what a user should know beforehand."""
    network, assignment, task = prepared.network, prepared.assignment, prepared.task
    notes = [RANDOM_WEIGHTS_NOTE] if network.source == RANDOM_WEIGHTS else []
    notes += [*network.notes, *unreadable_note(prepared.skipped)]
    graph = task.graph
    notes.append(describe_float_parts(graph.float_layers, graph.parameters))
    if not task.settings.per_channel:
        notes.append("one weight scale per layer; `per_channel` gives every channel its own")
    arguments.parser.print_notes(notes)
    quantized = task.settings.act_quant
    activations = f"A {assignment.act_bits}" if quantized else "activations in float"
    print(
        f"{network.name}: {assignment.float_size_mb:.4f} → {assignment.size_mb:.4f} MB, "
        f"{activations}, {len(task.images)} calibration images"
    )
    print(f"weight bits: {list(assignment.widths)}", flush=True)


def _print_row(name: str, row: StageRow) -> None:
    if row.predictions.has_labels:
        accuracy = row.predictions.accuracy()
        print(f"{name}: top-1 {accuracy.top1:.2f} % of {accuracy.count} images", flush=True)


def run(arguments: argparse.Namespace) -> None:
    """Quantize a network, or evaluate one that was written before.

    Args:
        arguments: Arguments of `build_parser`.
    """
    if Ranks.from_environment().world_size > 1:
        raise OmpqError("reconstruction runs in one process; start it without torchrun")
    if arguments.integer_only and arguments.evaluate is None:
        raise OmpqError("`integer_only` goes with `evaluate` DIR")
    seed_everything(arguments.seed)
    if arguments.evaluate is not None:
        device = resolve_device(arguments.device)
        evaluate_stored(arguments, Path(arguments.evaluate), device)
    else:
        with lock_folder(arguments.output_dir):
            quantize(arguments)


def main() -> None:
    """Run the console command."""
    run_script(build_parser, run)


if __name__ == "__main__":
    main()
