"""Fine-tune a trained network so that it computes with integers."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ompq import artifact
from ompq.artifact import Artifact
from ompq.bitconfig import Assignment, assign, resolve
from ompq.data import Loader, calibration_images, make_loader, unreadable_note
from ompq.errors import OmpqError
from ompq.files import check_writable, write_json
from ompq.fixed_point import IntegerNetwork, RangeRule, Scheme
from ompq.graph import NetworkGraph, trace
from ompq.metrics import predict
from ompq.options import json_ready, labelled_images_of, network_of
from ompq.preprocess import Preprocess
from ompq.runtime import Ranks, process_group, resolve_device, run_script, seed_everything
from ompq.zoo import RANDOM_WEIGHTS, Network, load_network
from QAT.hawq import assignment_of_names, read_dictionary
from QAT.options import build_parser, settings_of
from QAT.proof import compare_with_integers
from QAT.recovery import is_checkpoint, refuse_unfinished
from QAT.report import draw, print_table, to_json
from QAT.settings import TrainingSettings
from QAT.start import begin
from QAT.training import LAST, Progress, Task, apex_parallel, evaluate_all_ranks, fine_tune

CALIBRATION_IMAGES = 512
DEFAULT_SCHEME = "uniform8"
# Options that a resumed run must repeat.
_BINDING = """
model seed dataset input_size init_from batch_size data_percentage epochs start_epoch lr momentum wd
fix_BN fix_BN_threshold quantizer quant_mode channel_wise act_range_momentum act_percentile
weight_percentile bias_bit fixed_point_quantization distill_method teacher_arch teacher_path
distill_alpha temperature evaluate_times amp
""".split()


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
    begun = _begin(arguments, settings, ranks, device)
    task, assignment = begun.task, begun.assignment
    float_accuracy = evaluate_all_ranks(task, begun.network.module)
    _say(ranks, f"float: top-1 {float_accuracy.top1:.2f} % of {float_accuracy.count} images")
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
        _say(ranks, f"note: {note}")
    if ranks.is_main:
        _write(begun, content, progress)
        print_table(float_accuracy, final, assignment, progress)
        print(f"written to {task.folder}/: {artifact.FILE} results.json training.png")
    return content


@dataclass(frozen=True)
class _Begun:
    """A fine-tuning before its first step."""

    network: Network
    preprocess: Preprocess
    assignment: Assignment
    task: Task


def _begin(
    arguments: argparse.Namespace, settings: TrainingSettings, ranks: Ranks, device: torch.device
) -> _Begun:
    """Load, read, convert what the command line names, and say what it is."""
    if arguments.path is not None:
        # The published command gives --pretrained; a checkpoint of one's own goes before it.
        arguments.pretrained = False
    network, preprocess = network_of(arguments)
    training, test = _loaders(arguments, preprocess, ranks)
    side = preprocess.input_size
    graph = trace(network.module.to(device), (preprocess.channels, side, side))
    _check_labels(arguments, training, graph.num_outputs)
    source = None if arguments.init_from is None else artifact.load(arguments.init_from)
    assignment = _assignment(arguments, graph, source)
    _say(ranks, _introduction(network, assignment, training))
    converted = _converted(arguments, graph, assignment, preprocess, source)
    if converted.float_operations:
        _say(ranks, _left_in_float(converted.float_operations))
    task = Task(
        converted,
        _teacher(arguments, graph.num_outputs, device),
        training,
        test,
        settings,
        device,
        ranks,
        arguments.output_dir,
        _fingerprint(arguments, assignment, len(training)),
        _log(arguments, ranks),
    )
    return _Begun(network, preprocess, assignment, task)


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


def _loaders(
    arguments: argparse.Namespace, preprocess: Preprocess, ranks: Ranks
) -> tuple[Loader, Loader]:
    """This rank's share of the training images, and of the test images."""
    if not 0 < arguments.data_percentage <= 1:
        raise OmpqError(
            f"--data_percentage is {arguments.data_percentage}; it is a share between 0 and 1"
        )
    per_rank, remainder = divmod(arguments.batch_size, ranks.world_size)
    if remainder or per_rank < 1:
        raise OmpqError(
            f"--batch_size {arguments.batch_size} cannot be shared by {ranks.world_size} processes"
        )
    training = make_loader(
        arguments.dataset,
        arguments.data,
        "train",
        preprocess,
        per_rank,
        augment=True,
        shuffle=True,
        seed=arguments.seed,
        workers=arguments.workers,
        backend=arguments.loader,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    if arguments.data_percentage < 1:
        training.num_samples = max(
            ranks.world_size, round(arguments.data_percentage * training.num_images)
        )
    return training, labelled_images_of(arguments, preprocess, max(per_rank, 64), ranks)


def _check_labels(arguments: argparse.Namespace, training: Loader, num_classes: int) -> None:
    if not training.num_classes:
        raise OmpqError(f"--dataset {arguments.dataset} has no labels to train with; use PTQ")
    if training.num_classes > num_classes:
        raise OmpqError(
            f"the images are of {training.num_classes} classes, the network tells "
            f"{num_classes}; give a checkpoint for these images, or --num_classes"
        )


def _assignment(
    arguments: argparse.Namespace, graph: NetworkGraph, source: Artifact | None
) -> Assignment:
    given = arguments.quant_scheme if arguments.bit_cfg is None else arguments.bit_cfg
    if source is not None:
        _check_same_network(source, graph)
    if given is None and source is not None:
        held = source.description
        if arguments.act_bits is not None:
            return assign(graph.groups, "PTQ", held["bits"], arguments.act_bits)
        plain = assign(graph.groups, "PTQ", held["bits"], held["act_bits"])
        return replace(plain, group_act_bits=tuple(held["activation_bits"]))
    given = DEFAULT_SCHEME if given is None else given
    named = read_dictionary(given)
    if named is not None:
        if arguments.act_bits is not None:
            raise OmpqError("a HAWQ dictionary tells the activations' widths; leave --act_bits out")
        return assignment_of_names(named, graph)
    return resolve(given, graph.groups, "QAT", act_bits=arguments.act_bits)


def _check_same_network(source: Artifact, graph: NetworkGraph) -> None:
    if source.description["groups"] != [list(group.layers) for group in graph.groups]:
        raise OmpqError(
            f"--init_from is of another network ({source.description['architecture']['name']}); "
            "its layers are not those of --arch"
        )


def _converted(
    arguments: argparse.Namespace,
    graph: NetworkGraph,
    assignment: Assignment,
    preprocess: Preprocess,
    source: Artifact | None,
) -> IntegerNetwork:
    """The network that is trained, with its first ranges or those of PTQ."""
    rule = RangeRule(
        per_channel=arguments.channel_wise,
        weight_percentile=arguments.weight_percentile,
        act_percentile=arguments.act_percentile,
        momentum=arguments.act_range_momentum,
        asymmetric=arguments.quant_mode == "asymmetric",
    )
    scheme = Scheme(
        rule=rule,
        bias_bits=arguments.bias_bit,
        dyadic=not arguments.fixed_point_quantization,
        learned=arguments.quantizer == "lsq",
    )
    found = calibration_images(
        arguments.dataset,
        arguments.data,
        preprocess,
        CALIBRATION_IMAGES,
        seed=arguments.seed,
        backend=arguments.loader,
        workers=arguments.workers,
    )
    return begin(graph, assignment, scheme, found.images, source)


def _teacher(
    arguments: argparse.Namespace, num_classes: int, device: torch.device
) -> nn.Module | None:
    if arguments.distill_method == "None":
        return None
    teacher = load_network(
        arguments.teacher_arch,
        path=arguments.teacher_path,
        pretrained=arguments.teacher_path is None,
        num_classes=None if arguments.teacher_path else num_classes,
    )
    if teacher.num_classes != num_classes:
        raise OmpqError(
            f"the teacher {arguments.teacher_arch} has {teacher.num_classes} classes, the network "
            f"{num_classes}; give --teacher_path a checkpoint for these images"
        )
    return teacher.module.to(device).eval()


def _fingerprint(
    arguments: argparse.Namespace, assignment: Assignment, steps: int
) -> dict[str, Any]:
    """What a resumed run must have in common with the one that was killed."""
    ready = json_ready(arguments)
    given = {name: ready[name] for name in _BINDING}
    return given | {
        "weight bits": list(assignment.widths),
        "activation bits": list(assignment.activations),
        "steps per epoch": steps,
    }


def _log(arguments: argparse.Namespace, ranks: Ranks) -> Any:
    """What takes scalars for TensorBoard; None unless asked for."""
    if not arguments.tensorboard or not ranks.is_main:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OmpqError(
            "--tensorboard needs the package tensorboard; pip install tensorboard"
        ) from error
    return SummaryWriter(arguments.output_dir / "tensorboard")


def _write(begun: _Begun, content: dict[str, Any], progress: Progress) -> None:
    folder, network = begun.task.folder, begun.task.network
    artifact.save(
        folder / artifact.FILE, network, begun.network, begun.preprocess, begun.assignment
    )
    write_json(folder / "results.json", content)
    draw(progress, content["top1_fp32"], folder / "training.png")


def _introduction(network: Network, assignment: Assignment, training: Loader) -> str:
    lines = []
    if network.source == RANDOM_WEIGHTS:
        lines.append("note: the network has random weights; give a checkpoint with --path")
    lines.append(
        f"{network.name}: {assignment.float_size_mb:.4f} → {assignment.size_mb:.4f} MB, "
        f"A {assignment.act_bits}, {training.num_images} training images"
    )
    lines.append(f"weight bits: {list(assignment.widths)}")
    return "\n".join(lines)


def _left_in_float(operations: Mapping[str, str]) -> str:
    counts = Counter(operations.values())
    named = ", ".join(f"{what} ({count}×)" for what, count in counts.most_common())
    return f"note: without an integer form, and so in float: {named}; results.json names them all"


def _say(ranks: Ranks, text: str) -> None:
    if ranks.is_main:
        print(text, flush=True)


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
