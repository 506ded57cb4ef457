"""Fine-tune a trained network so that it computes with integers."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from ompq.script import interruptible_imports, run_script

with interruptible_imports():
    import argparse
    import os
    import time
    from contextlib import ExitStack
    from typing import Any

    import torch

    from ompq import artifact
    from ompq.data import unreadable_note
    from ompq.errors import OmpqError
    from ompq.evaluation import doubt_accuracy
    from ompq.files import check_writable, lock_folder, set_aside, write_json
    from ompq.integer import describe_operations
    from ompq.options import (
        json_ready,
        name_outputs,
    )
    from ompq.report import add_report
    from ompq.report.changes import FILE as CHANGES
    from ompq.report.changes import Changes, find_changes
    from ompq.report.entries import describe_groups
    from ompq.report.page import FILE as REPORT
    from ompq.runtime import (
        Ranks,
        gather_values,
        process_group,
        resolve_device,
        run_on_main,
        seed_everything,
    )
    from ompq.stored import evaluate_stored
    from ompq.zoo import RANDOM_WEIGHTS
    from QAT.checkpoint import (
        BEST,
        LAST,
        Resumed,
        is_checkpoint,
        read_resumed,
        refuse_unfinished,
    )
    from QAT.gradient_sharing import import_apex
    from QAT.options import (
        build_parser,
        check_process_options,
        read_settings,
        torchrun_command,
    )
    from QAT.preparation import (
        PreparedRun,
        prepare_run,
        print_notes_once,
        print_once,
    )
    from QAT.report import draw, print_table, to_json
    from QAT.settings import TrainingSettings
    from QAT.task import TrainingTask, measure_accuracy, predict_test
    from QAT.training import Progress, run_training

RESULTS = (artifact.FILE, "results.json", "training.png", CHANGES)
# What other commands wrote of an earlier result, which is set aside with it.
_OF_RESULTS = (*RESULTS, REPORT, "debug.json", "debug.png")
# Processes that are started where no GPU says how many.
CPU_PROCESSES = 2


def train(arguments: argparse.Namespace, ranks: Ranks, device: torch.device) -> dict[str, Any]:
    """Fine-tune, print the table, write checkpoints, `quantized.safetensors` and `results.json`.

    Args:
        arguments: Arguments of `build_parser`.
        ranks: This process among those that share the work.
        device: Device to compute on.

    Returns:
        The content of `results.json`.
    """
    settings = read_settings(arguments)
    file = _resolve_resume(arguments)
    check_writable(arguments.output_dir)
    if settings.apex:
        import_apex()
        if ranks.world_size == 1:
            raise OmpqError("`apex` shares gradients between processes, and there is one")
    with ExitStack() as held:
        # One rank holds the folder for all.
        lock = lock_folder(arguments.output_dir)
        run_on_main(ranks, lambda: held.enter_context(lock))
        return _train(arguments, settings, file, ranks, device)


def _train(
    arguments: argparse.Namespace,
    settings: TrainingSettings,
    file: Path | None,
    ranks: Ranks,
    device: torch.device,
) -> dict[str, Any]:
    """Fine-tune, from a checkpoint or from the beginning, in a folder that is this run's alone."""
    start = time.perf_counter()
    last = arguments.output_dir / LAST
    if file is None or not _is_same_file(file, last):
        refuse_unfinished(last)
    prepared = prepare_run(arguments, settings, ranks, device)
    task, assignment = prepared.task, prepared.assignment
    resumed = None
    if file is not None:
        resumed = read_resumed(file, task.folder, task.fingerprint)
    elif arguments.resume == "":
        print_notes_once(arguments, ranks, [f"{task.folder} holds no checkpoint; starting anew"])
    float_found = predict_test(task, prepared.network.module)
    float_accuracy = measure_accuracy(task, float_found)
    print_once(ranks, f"float: top-1 {float_accuracy.top1:.2f} % of {float_accuracy.count} images")
    if prepared.network.source != RANDOM_WEIGHTS:
        top1, count = float_accuracy.top1, float_accuracy.count
        doubts = doubt_accuracy(top1, count, prepared.network.num_classes)
        print_notes_once(arguments, ranks, doubts)
    run_on_main(ranks, lambda: _make_room(arguments, task, resumed))
    progress = run_training(task, resumed, arguments.start_epoch)
    if task.log is not None:
        task.log.close()
    found = predict_test(task)
    final = measure_accuracy(task, found)
    changes = find_changes(float_found, found, task.test, prepared.preprocess)
    content = to_json(
        float_accuracy=float_accuracy,
        final=final,
        progress=progress,
        assignment=assignment,
        network=task.network,
        arguments=json_ready(arguments),
        seconds=time.perf_counter() - start,
    )
    skipped = [*prepared.skipped, *(file for loader in prepared.loaders for file in loader.skipped)]
    content["skipped_images"] = sorted(set().union(*gather_values(skipped, ranks)))
    print_notes_once(arguments, ranks, unreadable_note(content["skipped_images"]))
    all_changes = gather_values(changes, ranks)
    if ranks.is_main:
        for other in all_changes[1:]:
            all_changes[0].add(other)
        content["command"] = arguments.parser.command
        _write(prepared, content, progress, all_changes[0])
        print_table(float_accuracy, final, assignment, progress)
        written = [*RESULTS, *add_report(task.folder, arguments.parser.print_note)]
        print(f"written to {task.folder}/: {' '.join(written)}")
    return content


def _resolve_resume(arguments: argparse.Namespace) -> Path | None:
    """Find the checkpoint to go on from; None to start anew.

    A checkpoint's folder becomes `output_dir` where none is given; a file of float weights becomes
    `path`.
    """
    if arguments.resume is None:
        if arguments.resume_quantize:
            raise OmpqError("`resume_quantize` goes with `resume` FILE")
        return None
    last: Path = arguments.output_dir / LAST
    if not arguments.resume:
        if arguments.resume_quantize and not last.is_file():
            raise OmpqError(f"`resume_quantize`: {arguments.output_dir} holds no checkpoint")
        return last if last.is_file() else None
    file = Path(arguments.resume)
    if is_checkpoint(file):
        # The default is this very object; what a user gives, though it be equal, is another one.
        if arguments.output_dir is arguments.parser.get_default("output_dir"):
            arguments.output_dir = file.parent
        return file
    if arguments.resume_quantize:
        raise OmpqError(f"{file} is no checkpoint of quantization-aware training")
    arguments.path = file
    return None


def _is_same_file(file: Path, other: Path) -> bool:
    return other.exists() and file.samefile(other)


def _make_room(arguments: argparse.Namespace, task: TrainingTask, resumed: Resumed | None) -> None:
    """Move what an earlier run left in the folder out of the way of this one."""
    if resumed is not None and resumed.in_place:
        return
    earlier = set_aside(task.folder, [LAST, BEST, *_OF_RESULTS])
    if earlier is not None:
        note = f"the run that was in {task.folder}/ is now in {earlier}/"
        arguments.parser.print_notes([note])


def _write(
    prepared: PreparedRun, content: dict[str, Any], progress: Progress, changes: Changes
) -> None:
    folder, network = prepared.task.folder, prepared.task.network
    class_names = name_outputs(prepared.loaders[0], prepared.network.num_classes)
    artifact.save_quantized(
        folder / artifact.FILE,
        network,
        prepared.assignment,
        source=prepared.network,
        preprocess=prepared.preprocess,
        class_names=class_names,
    )
    # Writing it has run the integers; what they show counts.
    content["integers_only"] = network.runs_on_integers
    content["float_operations"] = network.float_operations
    content["in_float"] = describe_operations(network.module, network.float_operations)
    content["parameters"] = prepared.graph.parameters.to_json()
    content["float_layers"] = dict(prepared.graph.float_layers)
    content["allocation"] = describe_groups(prepared.graph, prepared.assignment)
    write_json(folder / "results.json", content)
    draw(progress, content["top1_fp32"], folder / "training.png")
    write_json(folder / CHANGES, changes.to_json(class_names))


def run(arguments: argparse.Namespace) -> None:
    """Train or evaluate, after starting further processes where that is asked for.

    Args:
        arguments: Arguments of `build_parser`.
    """
    if arguments.gpu is not None:
        arguments.device = f"cuda:{arguments.gpu}"
    check_process_options(arguments)
    if arguments.integer_only and arguments.evaluate is None:
        raise OmpqError("`integer_only` goes with `evaluate` DIR")
    ranks = Ranks.from_environment()
    device = resolve_device(arguments.device, ranks.local_rank)
    # torchrun sets RANK: this process is one of those that were to be started.
    if arguments.multiprocessing_distributed and "RANK" not in os.environ:
        _become_torchrun(arguments, device)
    if arguments.evaluate is not None:
        # Of several processes one suffices, and says it once.
        if ranks.is_main:
            evaluate_stored(arguments, Path(arguments.evaluate or arguments.output_dir), device)
        return
    seed_everything(arguments.seed)
    with process_group(ranks, device, arguments.dist_backend):
        train(arguments, ranks, device)


def _become_torchrun(arguments: argparse.Namespace, device: torch.device) -> None:
    """Replace this process by torchrun, which starts the script once per GPU."""
    processes = torch.cuda.device_count() if device.type == "cuda" else CPU_PROCESSES
    again = [str(Path(__file__).resolve()), *sys.argv[1:]]
    command = torchrun_command(arguments, processes, again)
    # What is buffered would be lost with this process's memory.
    sys.stdout.flush()
    os.execv(command[0], command)


def main() -> None:
    """Run the console command."""
    run_script(build_parser, run)


if __name__ == "__main__":
    main()
