"""From a float network to integers on real images: train, search, reconstruct, fine-tune.

Trains a small float network (kept for the next run), allocates bits in every way at the sizes of
uniform widths, and shows the size at which the allocation matters most; then makes the smallest
network good again, by block reconstruction and by fine-tuning to pure integers, and exports it.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from ompq import interruptible_imports, run_script

with interruptible_imports():
    import argparse
    import hashlib
    from collections.abc import Sequence
    from importlib.util import find_spec

    import torch
    from torch import Tensor

    from examples.train_float import train_float
    from mixed_bit import (
        Comparison,
        ComparisonRow,
        OutcomeEvaluator,
        SearchSettings,
        build_evaluator,
        compare_candidates,
        draw_comparison,
        draw_result,
        print_comparison,
        search,
    )
    from ompq import (
        DATASETS,
        Accuracy,
        Loader,
        Network,
        NetworkGraph,
        Parser,
        add_run_options,
        calibration_images,
        choose_preprocess,
        evaluate,
        export_network,
        load_network,
        load_quantized,
        make_loader,
        resolve_device,
        save_quantized,
        save_state,
        seed_everything,
        trace,
        uniform,
    )
    from PTQ import Settings, quantize_network, round_to_nearest
    from QAT import TrainingSettings, fine_tune, prepare, verify

WIDTHS = (2, 3, 4)
CANDIDATES = (2, 3, 4, 5, 6, 7, 8)
ACT_BITS = 8
# Images that outcomes are measured on, and that PTQ and QAT calibrate with.
JUDGES = 512
CALIBRATION_IMAGES = 1024
RANDOM_TRIALS = 20
RANK_TRIALS = 60
# Steps per block of the reconstruction: for roundings, for activation step sizes.
WEIGHT_STEPS = 300
ACT_STEPS = 100
TUNING_EPOCHS = 2
TUNING_RATE = 0.01


def build_parser() -> Parser:
    """Build the parser of all options of the demonstration."""
    parser = Parser(prog="demo.py", description=__doc__)
    group = parser.add_argument_group("demonstration")
    group.add_argument("--dataset", choices=list(DATASETS), default="digits", help="images")
    group.add_argument("--data", type=Path, help="folder of the data set, where it needs one")
    group.add_argument("--model", default="small_resnet", help="network to train")
    group.add_argument("--epochs", type=int, help="float training (digits 30, others 2)")
    group.add_argument("--beta", type=float, default=10.0, help="beta of theta = exp(-beta gamma)")
    group.add_argument("--num_images", type=int, default=64, help="images of the search")
    group.add_argument("--verbose", action="store_true", help="print the long tables too")
    add_run_options(parser, "demo_output")
    return parser


def train_or_load(arguments: argparse.Namespace, device: torch.device) -> Network:
    """Return the float network: of an earlier run with these settings, or trained now."""
    epochs = arguments.epochs or (30 if arguments.dataset == "digits" else 2)
    key = f"{arguments.model} {arguments.dataset} {arguments.data} {epochs} {arguments.seed}"
    name = f"float-{hashlib.sha256(key.encode()).hexdigest()[:8]}.pth"
    file = arguments.output_dir / name
    if file.is_file():
        print(f"float network: {file} (of an earlier run)")
        return load_network(arguments.model, path=file)
    loader = _load(arguments, load_network(arguments.model), "train", 64)
    print(f"training {arguments.model} on {arguments.dataset}, {epochs} epochs …", flush=True)
    seed_everything(arguments.seed)
    network = load_network(arguments.model, num_classes=loader.num_classes)
    train_float(network.module, loader, epochs, device)
    save_state(file, network.module.state_dict())
    return network


def _load(arguments: argparse.Namespace, network: Network, split: str, batch: int) -> Loader:
    """Open one half of the data set; training images come augmented and in random order."""
    training = split == "train"
    return make_loader(
        arguments.dataset,
        arguments.data,
        split,
        choose_preprocess(arguments.dataset, network),
        batch,
        augment=training,
        shuffle=training,
        seed=arguments.seed,
    )


def _calibrate(arguments: argparse.Namespace, network: Network, count: int) -> Tensor:
    """Return training images without labels."""
    preprocess = choose_preprocess(arguments.dataset, network)
    found = calibration_images(
        arguments.dataset, arguments.data, preprocess, count, seed=arguments.seed
    )
    return found.images


def judge(
    arguments: argparse.Namespace, network: Network, graph: NetworkGraph, images: Tensor
) -> Comparison:
    """Allocate bits in every way at the sizes of uniform widths; try each out on test images."""
    sizes = [uniform(graph.groups, width, ACT_BITS).size_mb for width in WIDTHS]
    settings = SearchSettings("PTQ", size_mb=sizes[0], candidate_bits=CANDIDATES)
    evaluator = build_evaluator(graph, images, settings, seed=arguments.seed)
    test, labels = map(torch.cat, zip(*_load(arguments, network, "val", 256), strict=True))
    device = evaluator.probed.images.device
    outcomes = OutcomeEvaluator(
        evaluator.probed, test[:JUDGES].to(device), labels[:JUDGES].to(device)
    )
    return compare_candidates(
        evaluator,
        outcomes,
        sizes,
        random_trials=RANDOM_TRIALS,
        rank_trials=RANK_TRIALS,
        seed=arguments.seed,
    )


def find_telling_rows(comparison: Comparison) -> list[ComparisonRow]:
    """Return the rows of the size at which the candidates differ most, the best first."""
    sizes = dict.fromkeys(row.budget_mb for row in comparison.rows)
    by_size = [[row for row in comparison.rows if row.budget_mb == size] for size in sizes]
    telling = max(by_size, key=_spread)
    return sorted(telling, key=lambda row: row.kl)


def _spread(rows: Sequence[ComparisonRow]) -> tuple[float, float]:
    top1 = [row.top1 or 0.0 for row in rows]
    divergence = [row.kl for row in rows]
    return max(top1) - min(top1), max(divergence) - min(divergence)


def print_telling_rows(telling: Sequence[ComparisonRow]) -> None:
    """Print the table of one size; candidates that give one network share a line."""
    names: dict[tuple[int, ...], list[str]] = {}
    for row in telling:
        names.setdefault(tuple(row.bits), []).append(row.method)
    first = {tuple(row.bits): row for row in reversed(telling)}
    budget = telling[0].budget_mb
    print(f"\nweights rounded to nearest at {budget:.4f} MB, where the allocation matters most")
    print(f"{'bits allocated by':<44} {'size MB':>8} {'KL nats':>8} {'top-1 %':>8}")
    for bits, methods in names.items():
        # The long tables tell which β is meant.
        short = dict.fromkeys(name.partition(" β=")[0] for name in methods)
        row, shown = first[bits], ", ".join(short).replace("uniform 2", "uniform 2, every layer")
        shown = shown if len(shown) <= 44 else shown[:43] + "…"
        print(f"{shown:<44} {row.size_mb:>8.4f} {row.kl:>8.4f} {row.top1 or 0:>8.2f}")


def print_rounded(
    arguments: argparse.Namespace, network: Network, graph: NetworkGraph, images: Tensor
) -> None:
    """Print uniform widths, the paper's objective and its projection, rounded, size by size."""
    test = _load(arguments, network, "val", 256)
    print(f"\nweights rounded to nearest, BOPs at {ACT_BITS}-bit activations")
    print(f"{'network':<34} {'size MB':>8} {'BOPs G':>8} {'top-1 %':>8}")
    for width in WIDTHS:
        control = uniform(graph.groups, width, ACT_BITS)
        rows = [(f"uniform {width} (stem, classifier 8)", control)]
        for name, solver in (
            (f"orthogonality, β = {arguments.beta:g}", "ilp"),
            ("projection", "projection"),
        ):
            settings = SearchSettings(
                "PTQ",
                size_mb=control.size_mb,
                candidate_bits=CANDIDATES,
                act_bits=ACT_BITS,
                beta=arguments.beta,
                solver=solver,
            )
            rows.append((f"  {name}", search(graph, images, settings).assignment))
        for name, assignment in rows:
            accuracy = evaluate(round_to_nearest(graph, assignment, Settings()).module, test)
            size, bops = assignment.size_mb, assignment.bops_g
            print(f"{name:<34} {size:>8.4f} {bops:>8.3f} {accuracy.top1:>8.2f}")


def repair(arguments: argparse.Namespace, network: Network, graph: NetworkGraph) -> None:
    """Make the network of 2 bits good again: by reconstruction, and by fine-tuning to integers."""
    test = _load(arguments, network, "val", 256)
    images = _calibrate(arguments, network, CALIBRATION_IMAGES)
    smallest = uniform(graph.groups, WIDTHS[0], ACT_BITS)
    tell = print if arguments.verbose else lambda _: None
    print(
        f"\n{WIDTHS[0]} bits, the first and the last layer 8: {smallest.size_mb:.4f} MB, "
        f"{ACT_BITS}-bit activations"
    )
    rounded = round_to_nearest(graph, smallest, Settings())
    _print_step("rounded to nearest, activations in float", evaluate(rounded.module, test))
    steps = Settings(weight_iterations=WEIGHT_STEPS, act_iterations=ACT_STEPS, seed=arguments.seed)
    quantized, blocks = quantize_network(graph, smallest, images, steps, say=tell)
    seconds = sum(block.seconds for block in blocks)
    what = f"block reconstruction without labels, {seconds:.0f} s"
    _print_step(what, evaluate(quantized.module, test))
    save_quantized(arguments.output_dir / "ptq.safetensors", quantized, smallest, source=network)
    integers = prepare(graph, smallest, images)
    training = _load(arguments, network, "train", 64)
    settings = TrainingSettings(epochs=TUNING_EPOCHS, learning_rate=TUNING_RATE)
    progress = fine_tune(integers, training, test, settings, say=tell)
    what = f"{TUNING_EPOCHS} epochs of fine-tuning, {progress.seconds:.0f} s"
    _print_step(what, evaluate(integers.module, test))
    found = verify(integers, test)
    equal = f"; on {found.equal} of them every logit is equal to the bit"
    _print_step("its integers alone", found.accuracy, equal)
    file = arguments.output_dir / "qat.safetensors"
    save_quantized(file, integers, smallest, source=network, preprocess=test.preprocess)
    export(file, torch.cat([batch for batch, _ in test]))


def export(file: Path, images: Tensor) -> None:
    """Write the network for elsewhere: packed bits, and ONNX that computes its very logits."""
    targets = ["packed"]
    if find_spec("onnx") and find_spec("onnxruntime"):
        targets.append("onnx-integer")
    else:
        print("  for ONNX too: pip install onnx onnxruntime")
    for row in export_network(load_quantized(file), targets, file.parent, images):
        print(f"  exported: {row}")


def _print_step(what: str, accuracy: Accuracy, more: str = "") -> None:
    print(
        f"  {what:<44} top-1 {accuracy.top1:>6.2f} % of {accuracy.count} images{more}", flush=True
    )


def draw(
    arguments: argparse.Namespace, comparison: Comparison, graph: NetworkGraph, images: Tensor
) -> list[Path]:
    """Draw size against divergence, and the orthogonality with the bits that it gives."""
    title = f"{arguments.model} on {arguments.dataset}"
    compared = arguments.output_dir / f"{arguments.dataset}-compared.png"
    draw_comparison(comparison, title, compared)
    size = find_telling_rows(comparison)[0].budget_mb
    settings = SearchSettings(
        "PTQ", size_mb=size, candidate_bits=CANDIDATES, act_bits=ACT_BITS, beta=arguments.beta
    )
    found = arguments.output_dir / f"{arguments.dataset}.png"
    draw_result(search(graph, images, settings), title, found)
    return [compared, found]


def run(arguments: argparse.Namespace) -> None:
    """Train, search, compare, reconstruct, fine-tune."""
    seed_everything(arguments.seed)
    device = resolve_device(arguments.device)
    network = train_or_load(arguments, device)
    network.module.to(device)
    accuracy = evaluate(network.module, _load(arguments, network, "val", 256))
    print(f"float: {accuracy}", flush=True)
    images = _calibrate(arguments, network, arguments.num_images)
    graph = trace(network.module, (images.shape[1], images.shape[2], images.shape[3]))
    comparison = judge(arguments, network, graph, images)
    if arguments.verbose:
        print_rounded(arguments, network, graph, images)
        print_comparison(comparison)
    print_telling_rows(find_telling_rows(comparison))
    repair(arguments, network, graph)
    pictures = draw(arguments, comparison, graph, images)
    folder = arguments.output_dir
    print(f"\nnetworks: {folder / 'ptq.safetensors'}, {folder / 'qat.safetensors'}")
    print(f"pictures: {pictures[0]} (size against divergence), {pictures[1]} (the allocation)")
    if not arguments.verbose:
        print("all tables: --verbose")


if __name__ == "__main__":
    run_script(build_parser, run)
