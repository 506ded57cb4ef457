"""Fine-tune a trained network so that it computes with integers."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
import time
from typing import Any

import torch

from ompq import artifact
from ompq.data import unreadable_note
from ompq.errors import OmpqError
from ompq.files import check_writable, set_aside, write_json
from ompq.metrics import predict
from ompq.options import json_ready, labelled_images_of
from ompq.runtime import Ranks, process_group, resolve_device, run_script, seed_everything
from QAT.options import build_parser, settings_of
from QAT.proof import compare_with_integers
from QAT.recovery import is_checkpoint, refuse_unfinished
from QAT.report import draw, print_table, to_json
from QAT.setup import Begun, begin_run, say_once
from QAT.training import BEST, LAST, Progress, apex_parallel, evaluate_all_ranks, fine_tune

RESULTS = (artifact.FILE, "results.json", "training.png")


def train(arguments: argparse.Namespace, ranks: Ranks, device: torch.device) -> dict[str, Any]:
    """Fine-tune, print the table, write checkpoints, `quantized.safetensors` and `results.json`.

    Args:
        arguments: of `build_parser`.
        ranks: this process among those that share the work.
        device: to compute on.

    Returns:
        the content of `results.json`.
    """
    start = time.perf_counter()
    settings = settings_of(arguments)
    resume = _resume(arguments)
    check_writable(arguments.output_dir)
    if settings.apex:
        apex_parallel()
        if ranks.world_size == 1:
            raise OmpqError("--apex shares gradients between processes, and there is one")
    if not resume:
        refuse_unfinished(arguments.output_dir / LAST)
    begun = begin_run(arguments, settings, ranks, device)
    task, assignment = begun.task, begun.assignment
    float_accuracy = evaluate_all_ranks(task, begun.network.module)
    say_once(ranks, f"float: top-1 {float_accuracy.top1:.2f} % of {float_accuracy.count} images")
    if ranks.is_main and not resume:
        earlier = set_aside(task.folder, [LAST, BEST, *RESULTS])
        if earlier is not None:
            print(f"note: the run that was in {task.folder}/ is now in {earlier}/")
    progress = fine_tune(task, resume, arguments.start_epoch)
    if task.log is not None:
        task.log.close()
    final = evaluate_all_ranks(task)
    content = to_json(
        float_accuracy,
        final,
        progress,
        assignment,
        task.network,
        json_ready(arguments),
        time.perf_counter() - start,
    )
    content["skipped_images"] = sorted({*task.train.skipped, *task.test.skipped})
    for note in unreadable_note(content["skipped_images"]):
        say_once(ranks, f"note: {note}")
    if ranks.is_main:
        _write(begun, content, progress)
        print_table(float_accuracy, final, assignment, progress)
        print(f"written to {task.folder}/: {' '.join(RESULTS)}")
    return content


def _resume(arguments: argparse.Namespace) -> bool:
    """Whether to go on from a checkpoint; float weights given to `--resume` become `--path`."""
    if arguments.resume is None:
        if arguments.resume_quantize:
            raise OmpqError("--resume_quantize goes with --resume FILE")
        return False
    if not arguments.resume:
        if arguments.resume_quantize and not (arguments.output_dir / LAST).is_file():
            raise OmpqError(f"--resume_quantize: {arguments.output_dir} holds no checkpoint")
        return True
    file = Path(arguments.resume)
    if is_checkpoint(file):
        arguments.output_dir = file.parent
        return True
    if arguments.resume_quantize:
        raise OmpqError(f"{file} is no checkpoint of quantization-aware training")
    arguments.path = file
    return False


def _write(begun: Begun, content: dict[str, Any], progress: Progress) -> None:
    folder, network = begun.task.folder, begun.task.network
    artifact.save(
        folder / artifact.FILE, network, begun.network, begun.preprocess, begun.assignment
    )
    write_json(folder / "results.json", content)
    draw(progress, content["top1_fp32"], folder / "training.png")


def evaluate(arguments: argparse.Namespace, device: torch.device) -> None:
    """Print the accuracy of a network that was written before, and whether integers agree."""
    folder = Path(arguments.evaluate or arguments.output_dir)
    read = artifact.load(folder)
    loader = labelled_images_of(arguments, read.preprocess, max(64, arguments.batch_size))
    if arguments.integer_only:
        proof = compare_with_integers(read, loader, device)
        print(
            f"{read.title}, integer arithmetic alone: {proof.accuracy}; {proof.equal} of "
            f"{proof.accuracy.count} images give the logits of the simulation to the bit"
        )
        if proof.equal != proof.accuracy.count:
            raise OmpqError("integer arithmetic and simulation differ; please report this network")
        return
    print(f"{read.title}: {predict(read.network.module, loader, device).accuracy()}")
    for note in unreadable_note(loader.skipped):
        print(f"note: {note}")


def run() -> None:
    """Parse, then train or evaluate; start further processes if asked for."""
    arguments = build_parser().parse_args()
    if arguments.gpu is not None:
        arguments.device = f"cuda:{arguments.gpu}"
    _check_processes(arguments)
    if arguments.integer_only and arguments.evaluate is None:
        raise OmpqError("--integer_only goes with --evaluate DIR")
    ranks = Ranks.from_environment()
    device = resolve_device(arguments.device, ranks.local_rank)
    if arguments.multiprocessing_distributed and "RANK" not in os.environ:
        _start_processes(arguments, device)
    if arguments.evaluate is not None:
        evaluate(arguments, device)
        return
    seed_everything(arguments.seed)
    with process_group(ranks, device, arguments.dist_backend):
        train(arguments, ranks, device)


def _check_processes(arguments: argparse.Namespace) -> None:
    """Options that say how processes are started, where none is to be started."""
    if arguments.multiprocessing_distributed:
        return
    given = {
        "--world_size": arguments.world_size != 1,
        "--rank": arguments.rank != 0,
        "--dist_url": arguments.dist_url is not None,
    }
    unused = [option for option, told in given.items() if told]
    if unused:
        raise OmpqError(
            f"{', '.join(unused)}: only with --multiprocessing_distributed; torchrun takes these "
            "itself"
        )


def _start_processes(arguments: argparse.Namespace, device: torch.device) -> None:
    """Become torchrun, which starts this script once per GPU, or twice on the CPU."""
    count = torch.cuda.device_count() if device.type == "cuda" else 2
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}"]
    if arguments.dist_url is None:
        if arguments.world_size > 1:
            raise OmpqError("--world_size above 1 needs --dist_url tcp://HOST:PORT of machine 0")
        command.append("--standalone")
    else:
        host, _, port = arguments.dist_url.removeprefix("tcp://").rpartition(":")
        if not host or not port.isdecimal():
            raise OmpqError(f"--dist_url {arguments.dist_url}: write it tcp://HOST:PORT")
        command += [f"--nnodes={arguments.world_size}", f"--node_rank={arguments.rank}"]
        command += [f"--master_addr={host}", f"--master_port={port}"]
    sys.stdout.flush()
    os.execv(sys.executable, [*command, str(Path(__file__).resolve()), *sys.argv[1:]])


def main() -> None:
    """Entry point of the console command."""
    run_script(run)


if __name__ == "__main__":
    main()
