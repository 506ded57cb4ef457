"""What an exported network weighs, and how fast it runs, beside the float network.

For every network: bytes, seconds to load and milliseconds for one image of what `ompq-export`
writes, in this toolkit, ONNX Runtime, OpenVINO and C, and of the float network (batch norm folded)
in PyTorch and in the two runtimes. All take turns within one process, each after a run of its own
that is not timed and fills the caches; the C program runs by itself. Hardly anything is learned,
for what is learned changes no speed. Quote the ratios of the medians.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.optim.swa_utils import update_bn

from benchmarks.contestants import (
    ORT_FLOAT,
    TORCH_FLOAT,
    count_kernels,
    export_float,
    list_contestants,
    measure,
)
from ompq.artifact import Artifact, load_quantized, save_quantized
from ompq.assignment import DEFAULT_ACT_BITS, Assignment, assign
from ompq.errors import OmpqError
from ompq.export.checks import Exported
from ompq.export.exporting import draw_images, export_network
from ompq.files import write_json
from ompq.graph import Group, NetworkGraph, fold_batch_norm, trace
from ompq.options import Parser
from ompq.runtime import seed_everything, versions
from ompq.script import run_script
from ompq.values import positive, seed_number
from ompq.zoo import Network, load_network
from PTQ.quantize import quantize_network
from PTQ.settings import Settings

# Images that batch norms and scales of activations get their values from.
IMAGES = 8
INTEGER_KERNELS = ("QLinearConv", "QGemm", "QLinearMatMul")
# Of x86 and ARM, as Linux calls them; without them 8-bit products are far slower.
INTEGER_FEATURES = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
FLOAT_KERNELS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


@dataclass(frozen=True)
class Widths:
    """Widths of a network.

    Attributes:
        bits: Weight width of every group, or one for all of them.
        act_bits: Activation width.
    """

    bits: tuple[int, ...] = (4,)
    act_bits: int = DEFAULT_ACT_BITS


NETWORKS = {
    "resnet18": Widths((8, 3, 5, 4, 2, 6, 4, 7, 4, 4, 3, 4, 4, 3, 3, 4, 3, 8)),
    "mobilenet_v2": Widths((5,), 6),
}


def build_parser() -> Parser:
    """Build the parser with all options of the benchmark."""
    parser = Parser(prog="deploy.py", description=__doc__)
    parser.add_argument(
        "--networks", "--arch", dest="networks", nargs="+", default=list(NETWORKS),
        help="which networks",
    )  # fmt: skip
    parser.add_argument("--path", type=Path, help="checkpoint (default: random weights)")
    parser.add_argument("--input_size", type=positive, default=224, help="side of the images")
    parser.add_argument("--bits", type=positive, help="one weight width for all groups")
    parser.add_argument("--act_bits", type=positive, help="activation width")
    parser.add_argument("--threads", type=positive, default=1, help="threads of every contestant")
    parser.add_argument("--rounds", type=positive, default=15, help="timed runs of each")
    parser.add_argument(
        "--no_c", "--no-c", action="store_true", help="leave the C program out: cc takes its time"
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of everything random")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmark_output/deploy.json"), help="file of figures"
    )
    return parser


def choose_widths(
    name: str, groups: Sequence[Group], bits: int | None, act_bits: int | None
) -> Assignment:
    """Choose the widths of a network: those of `NETWORKS`, but for what is asked for.

    Args:
        name: Name of the network.
        groups: Groups of the network, in execution order.
        bits: Weight width of all groups; None for the network's own.
        act_bits: Activation width; None for the network's own.
    """
    own = NETWORKS.get(name, Widths())
    widths = own.bits if bits is None else (bits,)
    listed = list(widths) * len(groups) if len(widths) == 1 else list(widths)
    return assign(groups, "PTQ", listed, own.act_bits if act_bits is None else act_bits)


def load_float(name: str, path: Path | None, side: int) -> Network:
    """Load a float network; batch norms of random weights get statistics, as training gives them.

    Args:
        name: Name of the network.
        path: Checkpoint; None for random weights.
        side: Side of its images.
    """
    loaded = load_network(name, path=path)
    if path is None:
        channels = len(loaded.preprocess.mean)
        update_bn([torch.randn(IMAGES, channels, side, side)], loaded.module)
    preprocess = replace(loaded.preprocess, input_size=side, resize=256 * side // 224)
    return replace(loaded, module=loaded.module.eval(), preprocess=preprocess)


def quantize(loaded: Network, graph: NetworkGraph, assignment: Assignment, file: Path) -> Artifact:
    """Quantize a network, hardly learning anything, and read it from the file it was written to.

    Args:
        loaded: Float network.
        graph: Its traced graph.
        assignment: Widths of its groups.
        file: File to write.
    """
    images = torch.randn(IMAGES, *graph.input_shape)
    settings = Settings(weight_iterations=1, act_iterations=1, batch_size=IMAGES)
    network, _ = quantize_network(graph, assignment, images, settings, say=lambda _: None)
    save_quantized(file, network, assignment, source=loaded, preprocess=loaded.preprocess)
    return load_quantized(file)


def export_all(
    read: Artifact, folder: Path, with_c: bool, say: Callable[[str], None]
) -> dict[str, Exported]:
    """Export a network to every kind of file, each run and compared with it.

    Args:
        read: Quantized network.
        folder: Folder for the files.
        with_c: Whether C is among them.
        say: Function that is told what could not be run.

    Returns:
        Name of a target → its file, in `folder`; that of `packed-entropy` in a folder below.
    """
    targets = ["packed", "onnx", "onnx-packed", "onnx-integer", *["c"] * with_c]
    found = dict(zip(targets, export_network(read, targets, folder, say=say), strict=True))
    # It has the name of the packed file.
    (found["packed-entropy"],) = export_network(read, ["packed-entropy"], folder / "coded", say=say)
    return found


def describe_alone(exported: dict[str, Exported]) -> list[dict[str, Any]]:
    """Describe what takes no turns: weights coded by their frequencies, and C.

    Args:
        exported: What `export_all` returned.

    Returns:
        Rows as `measure` gives them. C has one figure, processor time for the mean of its own
        images.
    """
    coded, program = exported["packed-entropy"], exported.get("c")
    rows = [
        {
            "what": "ompq, entropy coded",
            "bytes": coded.size,
            "load s": coded.load_seconds,
            "rounds ms": [],
        }
    ]
    if program is not None:
        spent = program.image_seconds
        times = [] if spent is None else [1e3 * spent]
        name = f"C {program.file.name}"
        rows.append({"what": name, "bytes": program.size, "load s": None, "rounds ms": times})
    return rows


def compare(rows: Sequence[dict[str, Any]], promised: float) -> list[dict[str, Any]]:
    """Complete rows by how they stand beside the promised size and the float networks.

    Args:
        rows: Rows of `measure` and `describe_alone`.
        promised: Bytes that the widths promise.

    Returns:
        The rows, with `of promised`, `least ms`, `median ms`, and how many times as fast as the
        float network in PyTorch and in ONNX Runtime they are; None where nobody knows.
    """
    medians = {row["what"]: median(row["rounds ms"]) for row in rows if row["rounds ms"]}

    def compare_with(name: str, row: dict[str, Any]) -> float | None:
        both = name in medians and row["what"] in medians
        return medians[name] / medians[row["what"]] if both else None

    return [
        {
            **row,
            "of promised": row["bytes"] / promised,
            "least ms": min(row["rounds ms"], default=None),
            "median ms": medians.get(row["what"]),
            "x torch float": compare_with(TORCH_FLOAT, row),
            "x ONNX Runtime float": compare_with(ORT_FLOAT, row),
        }
        for row in rows
    ]


def measure_network(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all figures of one network.

    Args:
        name: Name of the network.
        arguments: Arguments of `build_parser`.
    """
    say = arguments.parser.print_note
    side = arguments.input_size
    loaded = load_float(name, arguments.path, side)
    graph = trace(loaded.module, (len(loaded.preprocess.mean), side, side))
    assignment = choose_widths(name, graph.groups, arguments.bits, arguments.act_bits)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        read = quantize(loaded, graph, assignment, folder / "quantized.safetensors")
        exported = export_all(read, folder, not arguments.no_c, say)
        image = draw_images(read, 1)
        folded = fold_batch_norm(graph)
        folded.module.eval()
        floats = export_float(folded.module, image, folder / "float.onnx", say)
        files = [exported[target].file for target in ("onnx", "onnx-packed")]
        kernels = {file.name: count_kernels(file) for file in files}
        contestants = list_contestants(folded, exported, floats, arguments.threads)
        rows = measure(contestants, image, arguments.rounds, say)
    promised = assignment.size_mb * 2**20
    return {
        "network": name,
        "weights": loaded.source,
        "bits": list(assignment.widths),
        "act_bits": assignment.act_bits,
        "promised bytes": promised,
        "notes": [note for row in exported.values() for note in row.notes],
        "kernels": kernels,
        "rows": compare([*rows, *describe_alone(exported)], promised),
    }


def print_network(found: dict[str, Any]) -> None:
    """Print the table of one network, and what ONNX Runtime makes of its layers."""
    print(
        f"\n{found['network']}, {found['weights']}, promised {found['promised bytes']:.0f} bytes\n"
        f"{'':<31} {'bytes':>10} {'× promised':>10} {'load s':>7} {'ms least':>9} "
        f"{'median':>8} {'× torch':>8} {'× ONNX Runtime':>14}"
    )
    for row in found["rows"]:
        print(
            f"{row['what']:<31} {row['bytes']:>10} {row['of promised']:>10.3f} "
            f"{_format(row['load s'], 2):>7} {_format(row['least ms'], 1):>9} "
            f"{_format(row['median ms'], 1):>8} {_format(row['x torch float'], 2):>8} "
            f"{_format(row['x ONNX Runtime float'], 2):>14}"
        )
    told = "; ".join(f"{name} {_tell(counts)}" for name, counts in found["kernels"].items())
    print(f"layers in ONNX Runtime: {told}", flush=True)


def _format(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _tell(kernels: Counter[str]) -> str:
    """Tell the kernels of integers, and those in float.

    >>> _tell(Counter(QLinearConv=20, QGemm=1, Relu=3))
    '20 QLinearConv, 1 QGemm, 0 in float'
    """
    told = [f"{kernels[name]} {name}" for name in INTEGER_KERNELS if kernels[name]]
    floats = [f"{kernels[name]} {name}" for name in FLOAT_KERNELS if kernels[name]]
    return ", ".join([*told, f"{' and '.join(floats) or 0} in float"])


def run(arguments: argparse.Namespace) -> None:
    """Measure, print, and write the figures.

    Args:
        arguments: Arguments of `build_parser`.

    Raises:
        OmpqError: One checkpoint for several networks.
    """
    if arguments.path is not None and len(arguments.networks) > 1:
        raise OmpqError("`path` holds the weights of one network; name it alone by `networks`")
    torch.set_num_threads(arguments.threads)
    print(
        f"{arguments.input_size}×{arguments.input_size}, one image at a time, threads: "
        f"{arguments.threads}, rounds: {arguments.rounds}, {name_processor()}",
        flush=True,
    )
    rows = []
    for name in arguments.networks:
        seed_everything(arguments.seed)
        rows.append(measure_network(name, arguments))
        arguments.parser.print_notes(rows[-1]["notes"])
        print_network(rows[-1])
    print("\n× torch, × ONNX Runtime: how many times as fast as the float network there")
    print("C: processor time, the mean of its own images; the others: in turns")
    figures = {"processor": name_processor(), "threads": arguments.threads, "versions": versions()}
    write_json(arguments.output, {**figures, "rows": rows})
    print(f"written to {arguments.output}")


def name_processor() -> str:
    """Name the processor, and what it has for products of 8-bit integers, as the system does."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name") or platform.processor() or platform.machine()
    features = (told.get("flags") or told.get("Features") or "").split()
    found = [each for each in features if each in INTEGER_FEATURES]
    return f"{name} ({', '.join(found) or 'no instructions for products of 8-bit integers known'})"


if __name__ == "__main__":
    run_script(build_parser, run)
