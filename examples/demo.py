"""From nothing to a bit configuration on real images: train, search, round, compare.

Trains a small float network (kept for the next run), finds its bit configuration at the size of a
uniform control, rounds the weights to nearest accordingly, and prints one table; then compares
every way to allocate bits at equal size, reconstructs some of these networks block by block, and
fine-tunes the smallest one to pure integers.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import hashlib
from dataclasses import dataclass

import torch

from mixed_bit.comparison import compare, draw_comparison, print_comparison
from mixed_bit.features import Shard
from mixed_bit.report import draw
from mixed_bit.search import SearchResult, SearchSettings, pricer_of, search
from mixed_bit.truth import Truth
from ompq import artifact
from ompq.bitconfig import Assignment, uniform
from ompq.data import (
    DATASETS,
    Loader,
    calibration_batches,
    calibration_images,
    make_loader,
    preprocess_for,
)
from ompq.files import save_state
from ompq.fixed_point import Scheme
from ompq.graph import NetworkGraph, trace
from ompq.metrics import Accuracy, evaluate
from ompq.options import Parser, add_run_options
from ompq.preprocess import Preprocess
from ompq.runtime import Ranks, resolve_device, run_script, seed_everything
from ompq.training import train_float
from ompq.zoo import Network, load_network
from PTQ.pipeline import Task, float_row, forget, post_training_quantization
from PTQ.settings import Settings
from PTQ.sweep import rounded
from QAT.proof import compare_with_integers
from QAT.settings import TrainingSettings
from QAT.start import begin
from QAT.training import Task as TuningTask
from QAT.training import fine_tune

WIDTHS = (2, 3, 4)
# Reconstruction: steps per block for the weights' rounding and the activations' scales.
STEPS, ACT_STEPS = 300, 100
TUNING_EPOCHS, TUNING_RATE = 2, 0.01
# Comparison: images that judge, random allocations at every size, and those that are ranked.
JUDGES, RANDOM, RANKED = 512, 20, 60
CANDIDATES = (2, 3, 4, 5, 6, 7, 8)
ACT_BITS = 8


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    size_mb: float
    bops_g: float
    accuracy: Accuracy


def build_parser() -> argparse.ArgumentParser:
    """All options of the demonstration."""
    parser = Parser(prog="demo.py", description=__doc__)
    group = parser.add_argument_group("demonstration")
    group.add_argument("--dataset", choices=list(DATASETS), default="digits", help="images")
    group.add_argument("--data", type=Path, help="folder of the data set, where it needs one")
    group.add_argument("--model", default="small_resnet", help="network to train")
    group.add_argument("--epochs", type=int, help="float training (digits 30, others 2)")
    group.add_argument("--beta", type=float, default=10.0, help="beta of theta = exp(-beta gamma)")
    group.add_argument("--num_images", type=int, default=64, help="images of the search")
    add_run_options(parser, "demo_output")
    return parser


def float_network(arguments: argparse.Namespace, device: torch.device) -> Network:
    """The trained network: of an earlier run with the same settings, or trained now."""
    epochs = arguments.epochs or (30 if arguments.dataset == "digits" else 2)
    key = f"{arguments.model} {arguments.dataset} {arguments.data} {epochs} {arguments.seed}"
    name = f"float-{hashlib.sha256(key.encode()).hexdigest()[:8]}.pth"
    file = arguments.output_dir / name
    if file.is_file():
        print(f"float network: {file} (of an earlier run)")
        return load_network(arguments.model, path=file)
    preprocess = preprocess_for(arguments.dataset, load_network(arguments.model).preprocess)
    loader = make_loader(
        arguments.dataset,
        arguments.data,
        "train",
        preprocess,
        64,
        augment=True,
        shuffle=True,
        seed=arguments.seed,
    )
    print(f"training {arguments.model} on {arguments.dataset}, {epochs} epochs …", flush=True)
    seed_everything(arguments.seed)
    network = load_network(arguments.model, num_classes=loader.num_classes)
    module = train_float(network.module, loader, epochs, device)
    save_state(file, module.state_dict())
    return network


def find(
    graph: NetworkGraph, images: torch.Tensor, size_mb: float, beta: float, solver: str
) -> SearchResult:
    """The configuration at `size_mb`, all widths of `CANDIDATES` allowed."""
    settings = SearchSettings(
        "PTQ", size_mb=size_mb, candidates=CANDIDATES, act_bits=ACT_BITS, beta=beta, solver=solver
    )
    return search(graph, [Shard(images, len(images))], settings)


def run() -> None:
    """Parse, train, search, round, print, draw."""
    arguments = build_parser().parse_args()
    seed_everything(arguments.seed)
    device = resolve_device(arguments.device)
    network = float_network(arguments, device)
    module = network.module.to(device)
    preprocess = preprocess_for(arguments.dataset, network.preprocess)
    test = make_loader(arguments.dataset, arguments.data, "val", preprocess, 256)
    accuracy = evaluate(module, test, device)
    print(f"float accuracy: {accuracy.top1:.2f} % of {accuracy.count} images", flush=True)
    side = preprocess.input_size
    graph = trace(module, (3, side, side))
    count = arguments.num_images
    (images,) = calibration_batches(
        arguments.dataset, arguments.data, preprocess, count, count, seed=arguments.seed
    )
    images = images.to(device)

    def row(name: str, assignment: Assignment) -> Row:
        network = rounded(graph, assignment, Settings()).module
        return Row(name, assignment.size_mb, assignment.bops_g, evaluate(network, test, device))

    eight = uniform(graph.groups, 8)
    float_bops = sum(group.ops for group in graph.groups) * 32 * 32 / 1e9
    rows = [Row("float", eight.float_size_mb, float_bops, accuracy)]
    results = []
    reconstructed = [("uniform 2", uniform(graph.groups, 2, ACT_BITS))]
    for width in WIDTHS:
        control = uniform(graph.groups, width, ACT_BITS)
        rows.append(row(f"uniform {width} (stem, classifier 8)", control))
        for name, solver in (("OMPQ", "ilp"), ("projection", "projection")):
            result = find(graph, images, control.size_mb, arguments.beta, solver)
            rows.append(row(f"  {name}, same size", result.assignment))
            results += [result] if solver == "ilp" else []
    rows.append(row("uniform 8", eight))
    print_table(rows)
    sizes = [uniform(graph.groups, width, ACT_BITS).size_mb for width in WIDTHS]
    judge(graph, images, sizes, preprocess, arguments)
    middle = results[len(WIDTHS) // 2].assignment
    reconstructed += [
        ("uniform 3", uniform(graph.groups, 3, ACT_BITS)),
        ("OMPQ, size of uniform 3", middle),
    ]
    reconstruct(reconstructed, graph, preprocess, test, arguments)
    tune(reconstructed[0][1], graph, network, preprocess, test, arguments)
    picture = arguments.output_dir / f"{arguments.dataset}.png"
    draw(results[len(WIDTHS) // 2], f"{arguments.model} on {arguments.dataset}", picture)
    print(f"picture: {picture} (the configuration at the size of uniform {WIDTHS[1]})")


def judge(
    graph: NetworkGraph,
    images: torch.Tensor,
    sizes_mb: list[float],
    preprocess: Preprocess,
    arguments: argparse.Namespace,
) -> None:
    """Every way to allocate bits at these sizes, on test images, as a table and a picture."""
    data = arguments.dataset, arguments.data
    loader = make_loader(*data, "val", preprocess, 256, num_samples=JUDGES)
    test, labels = map(torch.cat, zip(*loader, strict=True))
    settings = SearchSettings("PTQ", size_mb=sizes_mb[0], candidates=CANDIDATES)
    pricer = pricer_of(graph, [Shard(images, len(images))], settings, seed=arguments.seed)
    truth = Truth(pricer.subject, test.to(images.device), labels.to(images.device))
    counts = {"random_trials": RANDOM, "rank_trials": RANKED}
    comparison = compare(pricer, truth, settings, sizes_mb, seed=arguments.seed, **counts)
    print_comparison(comparison)
    picture = arguments.output_dir / f"{arguments.dataset}-compared.png"
    draw_comparison(comparison, f"{arguments.model} on {arguments.dataset}", picture)
    print(f"picture: {picture}", flush=True)


def reconstruct(
    configurations: list[tuple[str, Assignment]],
    graph: NetworkGraph,
    preprocess: Preprocess,
    test: Loader,
    arguments: argparse.Namespace,
) -> None:
    """Block reconstruction of some configurations, weights and activations, and its table."""
    images = calibration_images(
        arguments.dataset, arguments.data, preprocess, 1024, seed=arguments.seed
    ).images
    settings = Settings(weight_iterations=STEPS, act_iterations=ACT_STEPS, seed=arguments.seed)
    folder = arguments.output_dir / "ptq"
    forget(folder)
    task = Task(graph, images, test, settings, folder, say=lambda _: None)
    print(
        f"\nreconstructed on {len(images)} images without labels, {STEPS} + {ACT_STEPS} steps a "
        f"block, {ACT_BITS}-bit activations"
    )
    print(f"{'network':<26} {'rounded':>8} {'weights':>8} {'all':>8} {'seconds':>8}   top-1 %")
    first = float_row(task, configurations[0][1])
    for name, assignment in configurations:
        outcome = post_training_quantization(task, assignment, first, state=name)
        top1 = [row.predictions.accuracy().top1 for row in outcome.rows[1:]]
        print(
            f"{name:<26} {top1[0]:>8.2f} {top1[1]:>8.2f} {top1[2]:>8.2f} {outcome.seconds:>8.1f}",
            flush=True,
        )
    forget(folder)


def tune(
    assignment: Assignment,
    graph: NetworkGraph,
    network: Network,
    preprocess: Preprocess,
    test: Loader,
    arguments: argparse.Namespace,
) -> None:
    """A short fine-tuning to a network of integers, and the proof that integers suffice."""
    data = arguments.dataset, arguments.data
    images = calibration_images(*data, preprocess, 256, seed=arguments.seed).images
    training = make_loader(
        *data, "train", preprocess, 64, augment=True, shuffle=True, seed=arguments.seed
    )
    converted = begin(graph, assignment, Scheme(), images)
    settings = TrainingSettings(epochs=TUNING_EPOCHS, learning_rate=TUNING_RATE)
    device = next(graph.module.parameters()).device
    folder = arguments.output_dir / "qat"
    print(f"\nuniform 2, fine-tuned for {TUNING_EPOCHS} epochs on labelled images")
    task = TuningTask(
        converted, None, training, test, settings, device, Ranks(), folder, fingerprint={}
    )
    fine_tune(task, resume=False)
    artifact.save(folder / artifact.FILE, converted, network, preprocess, assignment)
    proof = compare_with_integers(artifact.load(folder), test, device)
    print(
        f"integer arithmetic alone: {proof.accuracy}; on {proof.equal} of them the logits of the "
        "simulation, to the bit"
    )


def print_table(rows: list[Row]) -> None:
    """One line per network."""
    print(f"\nweights rounded to nearest, activations in float, BOPs at {ACT_BITS}-bit activations")
    print(f"{'network':<34} {'size MB':>8} {'BOPs G':>8} {'top-1 %':>8}")
    for row in rows:
        print(f"{row.name:<34} {row.size_mb:>8.4f} {row.bops_g:>8.3f} {row.accuracy.top1:>8.2f}")


if __name__ == "__main__":
    run_script(run)
