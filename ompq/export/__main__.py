"""Export a quantized network, or verify a file that was exported: `python -m ompq.export`."""

from __future__ import annotations

from ompq.script import interruptible_imports, run_script

with interruptible_imports():
    import argparse
    import shlex
    from pathlib import Path

    import torch

    from ompq.artifact import Artifact, load_quantized
    from ompq.errors import OmpqError
    from ompq.export.checks import verify_file
    from ompq.export.device import check_device
    from ompq.export.exporting import draw_images, export_network
    from ompq.export.options import build_parser, check_verification, choose_targets
    from ompq.export.report import print_table
    from ompq.export.targets import WEB_FOLDER, list_files
    from ompq.files import check_writable, lock_folder
    from ompq.stored_images import find_data, read_images
    from ompq.target import read_target


def export(arguments: argparse.Namespace) -> None:
    """Export the network of a folder, and print the table.

    Args:
        arguments: Arguments of `build_parser`.

    Raises:
        OmpqError: The network cannot be exported so, or computes something else then.
    """
    targets = choose_targets(arguments)
    source: Path = arguments.source
    if arguments.output_dir is not None:
        check_writable(arguments.output_dir, "folder")
    target = None if arguments.target is None else read_target(arguments.target)
    read = load_quantized(source)
    if target is not None:
        check_device(read, target)
    folder = arguments.output_dir or (source if source.is_dir() else source.parent)
    images = _choose_images(arguments, read)
    parser = arguments.parser
    with lock_folder(folder, "folder"):
        rows = export_network(read, targets, folder, images, say=parser.print_note)
    parser.print_notes(note for row in rows for note in row.notes)
    print_table(rows)
    names = (name for row in rows for name in list_files(row.title))
    print(f"written to {folder}/: {' '.join(names)}")
    if "web" in targets:
        quoted = shlex.quote(str(folder / WEB_FOLDER))
        print(f"to open it: python -m http.server -d {quoted}, then http://localhost:8000")


def _choose_images(arguments: argparse.Namespace, read: Artifact) -> torch.Tensor:
    """Return images of the data set that is named, or of the run that quantized, or random ones."""
    given = arguments.dataset is not None
    dataset, root = arguments.dataset, arguments.data
    try:
        if not given:
            dataset, root = find_data(arguments.source, root)
        if dataset is not None:
            count = arguments.num_images
            images = read_images(dataset, root, read, count, arguments.workers)
            if len(images) < count:
                arguments.parser.print_note(f"{dataset} holds {len(images)} of {count} images")
            return images
        reason = "no data set is named"
    except OmpqError as error:
        if given:
            raise
        reason = str(error)
    arguments.parser.print_note(f"compared on random pixels, for {reason}; `dataset` names images")
    return draw_images(read, arguments.num_images)


def run(arguments: argparse.Namespace) -> None:
    """Export, or verify.

    Args:
        arguments: Arguments of `build_parser`.
    """
    if arguments.verify is None:
        export(arguments)
        return
    check_verification(arguments)
    found = verify_file(arguments.verify)
    arguments.parser.print_notes(found.notes)
    print_table([found])


def main() -> None:
    """Run the console command."""
    run_script(build_parser, run)


if __name__ == "__main__":
    main()
