"""Compare the layers of a quantized network with the float one: `python -m ompq.debug`."""

from __future__ import annotations

from ompq.script import interruptible_imports, run_script

with interruptible_imports():
    import argparse
    from pathlib import Path
    from typing import Any

    from ompq.artifact import load_quantized
    from ompq.debug.comparison import compare_layers
    from ompq.debug.options import build_parser
    from ompq.debug.report import print_table, write
    from ompq.errors import OmpqError
    from ompq.files import lock_folder
    from ompq.graph import trace
    from ompq.options import json_ready
    from ompq.report import add_report
    from ompq.runtime import versions
    from ompq.stored_images import find_data, read_images, read_run
    from ompq.zoo import load_network


def run(arguments: argparse.Namespace) -> None:
    """Compare, print the table, write `debug.json`, `debug.png` and the report into the folder.

    Args:
        arguments: Arguments of `build_parser`.

    Raises:
        OmpqError: The folder holds no finished run, or its float network or images are gone.
    """
    source: Path = arguments.source
    given = read_run(source)
    # A run that goes on there would set aside what is written, and read what is half of it.
    with lock_folder(source, "source"):
        _run(arguments, given)


def _run(arguments: argparse.Namespace, given: dict[str, Any]) -> None:
    source: Path = arguments.source
    read = load_quantized(source)
    checkpoint = arguments.path or given.get("path")
    if "model" not in given:
        raise OmpqError(f"{source}/results.json names no network; quantize it again")
    network = load_network(
        given["model"],
        path=None if checkpoint is None else Path(checkpoint),
        pretrained=bool(given.get("pretrained")) and checkpoint is None,
        num_classes=given.get("num_classes"),
    )
    arguments.parser.print_notes(network.notes)
    dataset, root = arguments.dataset, arguments.data
    if dataset is None:
        dataset, root = find_data(source, root)
    images = read_images(str(dataset), root, read, arguments.num_images, arguments.workers)
    graph = trace(network.module, read.network.input_shape, read.network.exclusions)
    print(f"{read.title}, beside {network.name} in float, on {len(images)} images of {dataset}")
    layers = compare_layers(graph, read.network, images)
    print_table(layers, arguments.shown)
    about = {"arguments": json_ready(arguments), "versions": versions(), "num_images": len(images)}
    written = [*write(layers, about, source), *add_report(source, arguments.parser.print_note)]
    print(f"written to {source}/: {' '.join(written)}")


def main() -> None:
    """Run the console command."""
    run_script(build_parser, run)


if __name__ == "__main__":
    main()
