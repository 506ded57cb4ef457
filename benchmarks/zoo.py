"""Take the networks of torchvision and timm through tracing, check, 8 bits and integers.

Every classification network of torchvision, and the smallest of every family of timm, with random
weights and on small images where the network allows them. Each is traced and checked, rounded to 8
bits with its activations, and converted to integers, which are compared with their simulation to
the bit. What was found is kept network by network, so that a run that was stopped goes on; at its
end it writes the table `docs/networks.md`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from ompq.script import interruptible_imports, run_script

with interruptible_imports():
    import argparse
    import gc
    import json
    import multiprocessing
    import signal
    import time
    from collections import Counter
    from collections.abc import Iterator, Sequence
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    from contextlib import contextmanager
    from dataclasses import asdict, dataclass
    from types import FrameType
    from typing import TypeAlias

    import timm
    import torch
    from torch import Tensor, nn
    from torchvision import models

    from benchmarks.zoo_networks import choose_networks
    from ompq.assignment import uniform
    from ompq.errors import OmpqError
    from ompq.evaluation import flatten_logits
    from ompq.files import write_text
    from ompq.graph import NetworkGraph, trace_for
    from ompq.graph.check import measure_difference
    from ompq.graph.operations import operation, tensor_shape
    from ompq.integer import IntegerNetwork
    from ompq.integer.network import select_computing
    from ompq.options import Parser
    from ompq.runtime import progress, versions
    from ompq.zoo import load_network
    from QAT import prepare

# Images that batch norms get their statistics from, and those that everything is checked on.
SETTLING_IMAGES = 16
IMAGES = 2
NETWORKS_PER_PROCESS = 15
# The first side that a network takes is used; None for its own.
SIDES = (64, None)
ADAPTIVE_POOLS = frozenset({"adaptiveavgpool2d", "adaptive_avg_pool2d"})
NOT_EXAMINED = "not examined"
INTEGERS, PARTLY, REFUSED, FAILED = "integers", "in float in part", "refused", "traceback"


class _NotExaminedError(Exception):
    """A network is beyond the limits."""


@dataclass(frozen=True)
class Limits:
    """What is not examined.

    Attributes:
        seconds: Time for one network.
        parameters: Number of its parameters.
    """

    seconds: int
    parameters: int


@dataclass(frozen=True)
class Finding:
    """What became of one network.

    Attributes:
        library: `torchvision` or `timm`.
        name: Name of the network.
        outcome: One of `INTEGERS`, `PARTLY`, `REFUSED` and `FAILED`.
        detail: What stays in float, or why the network was refused.
        side: Side of the images.
        parameters: Number of parameters.
        quantized: Number of those that are quantized.
        error: ‖ŷ − y‖ / ‖y‖ of the logits, with weights and activations at 8 bits.
        notes: What the check had to leave as it is.
        seconds: Time of all of it.
    """

    library: str
    name: str
    outcome: str
    detail: str = ""
    side: int = 0
    parameters: int = 0
    quantized: int = 0
    error: float | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


def examine(library: str, name: str, limits: Limits) -> Finding:
    """Take one network through everything, and say what became of it.

    Args:
        library: `torchvision` or `timm`.
        name: Name of the network.
        limits: Limits beyond which it is not examined.
    """
    start = time.perf_counter()
    notes: list[str] = []
    try:
        with _time_limit(limits.seconds):
            found = _examine(library, name, limits, notes)
    except _NotExaminedError as error:
        found = Finding(library, name, NOT_EXAMINED, str(error))
    except OmpqError as error:
        found = Finding(library, name, REFUSED, str(error))
    except Exception as error:  # whatever it is, it is a defect to be listed
        reason = str(error).split("\n")[0][:200]
        found = Finding(library, name, FAILED, f"{type(error).__name__}: {reason}")
    seconds = round(time.perf_counter() - start, 1)
    return Finding(**{**asdict(found), "notes": tuple(notes), "seconds": seconds})


def _examine(library: str, name: str, limits: Limits, notes: list[str]) -> Finding:
    torch.manual_seed(0)
    size = _count_parameters(library, name)
    if size > limits.parameters:
        raise _NotExaminedError(f"{size / 1e6:.0f} million parameters")
    expected, images, graph = _open(library, name, notes)
    # What was traced and thrown away is held by cycles: several times the weights.
    gc.collect()
    converted = prepare(graph, uniform(graph.groups, 8, 8), images, say=notes.append)
    gc.collect()
    operations = Counter(select_computing(converted.float_operations).values())
    rest = ", ".join(f"{what} ({count}×)" for what, count in operations.most_common())
    return Finding(
        library=library,
        name=name,
        outcome=INTEGERS if converted.runs_on_integers else PARTLY,
        detail=rest,
        side=images.shape[-1],
        parameters=graph.parameters.total,
        quantized=graph.parameters.quantized,
        error=_measure_rounding(converted, images, expected),
    )


def _build(library: str, name: str) -> nn.Module:
    if library == "timm":
        return timm.create_model(name)
    return models.get_model(name, weights=None)


def _count_parameters(library: str, name: str) -> int:
    """Count the parameters of a network without memory for them, where that can be."""
    try:
        with torch.device("meta"):
            network = _build(library, name)
    except RuntimeError:  # a network that computes while it is built
        network = _build(library, name)
    return sum(parameter.numel() for parameter in network.parameters())


def _open(library: str, name: str, notes: list[str]) -> tuple[Tensor, Tensor, NetworkGraph]:
    """Build a network; return its logits of the smallest images that it takes, these, and it."""
    loaded = load_network(f"{library}:{name}")
    channels, own = loaded.preprocess.channels, loaded.preprocess.input_size
    refused: OmpqError | None = None
    for side in (side or own for side in SIDES):
        images = torch.randn(SETTLING_IMAGES, channels, side, side)
        try:
            _settle_norms(loaded.module, images)
            images = images[:IMAGES]
            graph = trace_for(loaded.module, images, notes.append)
        except OmpqError as error:
            refused = error
            continue
        # Of small images a pool may make larger ones: another network than the usual one.
        if side == own or not _has_growing_pool(graph):
            with torch.inference_mode():
                return flatten_logits(loaded.module(images), IMAGES), images, graph
    raise refused or OmpqError("no image fits")


def _has_growing_pool(graph: NetworkGraph) -> bool:
    for node in graph.module.graph.nodes:
        if operation(node, graph.module) in ADAPTIVE_POOLS:
            before, after = tensor_shape(node.all_input_nodes[0]), tensor_shape(node)
            if before and after and after[-1] > before[-1]:
                return True
    return False


def _settle_norms(network: nn.Module, images: Tensor) -> None:
    """Give batch norms the statistics of the images, without which random weights fade or grow."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    try:
        with torch.inference_mode():
            network(images)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise OmpqError(f"cannot run on images of {images.shape[-1]} pixels: {error}") from error
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()


def _measure_rounding(converted: IntegerNetwork, images: Tensor, expected: Tensor) -> float:
    """Measure what 8 bits of weights and activations, nothing learned, change of the logits."""
    with torch.inference_mode():
        return measure_difference(converted.module(images), expected)


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise _NotExaminedError(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


_Job: TypeAlias = tuple[str, str, Limits]


def _examine_job(job: _Job) -> Finding:
    torch.set_num_threads(1)
    return examine(*job)


def run_all(
    networks: Sequence[tuple[str, str]], file: Path, jobs: int, limits: Limits
) -> list[Finding]:
    """Examine all networks that the file does not know yet, and add each to it when it is done.

    What is beyond the limits is not added: a run with wider ones takes it up.

    Args:
        networks: Library and name of each.
        file: File of findings, one JSON text per line.
        jobs: Number of processes.
        limits: Limits beyond which a network is not examined.

    Returns:
        The findings of all, in the order of `networks`.
    """
    known = _read(file)
    missing = [(*key, limits) for key in networks if key not in known]
    with file.open("a", encoding="utf-8") as out:
        for finding in progress(_examine_all(missing, jobs), "networks", len(missing)):
            if finding.outcome != NOT_EXAMINED:
                out.write(json.dumps(asdict(finding)) + "\n")
                out.flush()
            known[finding.library, finding.name] = finding
    return [known[key] for key in networks]


def _examine_all(missing: Sequence[_Job], jobs: int) -> Iterator[Finding]:
    """Examine networks in processes; one whose process the system ends is told as not examined."""
    left = []
    # Few networks per process, for what libraries keep in memory grows.
    batch = NETWORKS_PER_PROCESS * jobs
    for start in range(0, len(missing), batch):
        with _start_processes(jobs) as pool:
            running = {
                pool.submit(_examine_job, job): job for job in missing[start : start + batch]
            }
            for future in as_completed(running):
                try:
                    yield future.result()
                except BrokenProcessPool:
                    left.append(running[future])
    for job in left:
        with _start_processes(1) as alone:
            try:
                yield alone.submit(_examine_job, job).result()
            except BrokenProcessPool:
                library, name, _ = job
                yield Finding(library, name, NOT_EXAMINED, "no memory was left for it")


def _start_processes(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))


def _read(file: Path) -> dict[tuple[str, str], Finding]:
    if not file.is_file():
        return {}
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {(row["library"], row["name"]): Finding(**row) for row in rows}


def write_table(findings: Sequence[Finding], path: Path) -> None:
    """Write the table of all networks, and the counts above it."""
    counts = Counter(finding.outcome for finding in findings)
    examined = [f for f in findings if f.outcome != NOT_EXAMINED]
    traced = [f for f in examined if f.outcome in (INTEGERS, PARTLY)]
    used = versions()
    waiting = [f"{f.library}:{f.name}" for f in findings if f.outcome == NOT_EXAMINED]
    lines = [
        "# Networks",
        "",
        "`python benchmarks/zoo.py` takes every classification network of torchvision and the "
        "smallest of every family of timm, with random",
        "weights, through tracing, the check against the network itself (relative error at most "
        "1e-4), 8-bit weights and activations, and the",
        "conversion to integers, which is compared with its simulation to the bit, node by node. "
        "`quantized` is the share of the parameters.",
        "",
        f"{len(findings)} networks (torchvision {used['torchvision']}, timm {used['timm']}, torch "
        f"{used['torch']}): {counts[INTEGERS]} run on integers alone, {counts[PARTLY]} in float in "
        f"part, {counts[REFUSED]} are refused, {counts[FAILED]} fail, {len(waiting)} are not "
        "examined yet.",
        f"Of {len(examined)} examined, {100 * len(traced) / max(1, len(examined)):.1f} % are "
        "traced and agree with the network itself.",
        "",
        "| network | side | quantized | outcome |",
        "|---|---|---|---|",
        *map(_format_row, examined),
    ]
    if waiting:
        lines += ["", f"Not examined yet: {', '.join(waiting)}."]
    write_text(path, "\n".join(lines) + "\n")


def _format_row(finding: Finding) -> str:
    name = f"{finding.library}:{finding.name}"
    if finding.outcome not in (INTEGERS, PARTLY):
        return f"| {name} | | | **{finding.outcome}**: {_escape(finding.detail)} |"
    outcome = f"in float: {finding.detail}" if finding.detail else "integers alone"
    share = f"{100 * finding.quantized / max(1, finding.parameters):.1f} %"
    return f"| {name} | {finding.side} | {share} | {outcome} |"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(prog="zoo.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--limit", type=int, default=600, help="seconds for one network")
    parser.add_argument(
        "--largest", type=float, default=150, help="millions of parameters of one network"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("docs/networks.jsonl"),
        help="findings; what is there is kept",
    )
    parser.add_argument("--table", type=Path, default=Path("docs/networks.md"))
    parser.add_argument("--only", default="", help="part of the names to examine; no table then")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Examine, print what fails, write the table."""
    networks = [key for key in choose_networks() if arguments.only in ":".join(key)]
    limits = Limits(arguments.limit, int(1e6 * arguments.largest))
    findings = run_all(networks, arguments.output, arguments.jobs, limits)
    for finding in findings:
        if arguments.only or finding.outcome == FAILED:
            print(_format_row(finding))
    print(dict(Counter(finding.outcome for finding in findings)))
    if not arguments.only:
        write_table(findings, arguments.table)
        print(f"written: {arguments.output} {arguments.table}")


def main() -> None:
    """Run the console command."""
    run_script(build_parser, run)


if __name__ == "__main__":
    main()
