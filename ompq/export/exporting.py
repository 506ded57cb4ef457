"""A quantized network exported: written beside, run, compared, and only then put into its place."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ompq.artifact import Artifact
from ompq.errors import OmpqError
from ompq.evaluation import find_device
from ompq.export.checks import (
    Exported,
    check_c,
    check_file,
    compute_logits,
    count_differing,
    insist,
    open_file,
)
from ompq.export.places import put_all_into_place
from ompq.export.runtimes import NoRuntime
from ompq.export.seals import compute_checksum
from ompq.export.targets import TARGETS, Target
from ompq.export.test_images import TestImages, find_test_images
from ompq.files import check_writable, temporary_folder
from ompq.runtime import say

# Test images that stay beside a file; more are run when it is written.
TEST_IMAGES = 8
_BATCH = 8
_MIB = 2**20
# What the folders are named after in which files are made.
_ROOM = "export"


def export_network(
    read: Artifact,
    targets: Sequence[str],
    folder: str | Path,
    images: Tensor | None = None,
    *,
    say: Callable[[str], None] = say,
) -> list[Exported]:
    """Export a quantized network, and prove that every file computes what it does.

    A file appears in the folder once it has been run and compared; one that computes something else
    never does.

    Args:
        read: Quantized network, from `ompq.artifact.load_quantized`.
        targets: Names of `TARGETS`.
        folder: Folder for the files.
        images: Images to compare on, float32, n × channels × height × width, normalised; a few of
            them stay beside the files. None for random ones.
        say: Function that is told what could not be run.

    Returns:
        What every file weighs and computes, in the order of the targets.

    Raises:
        OmpqError: An unknown target, an operation that a target has no form of, an unwritable
            folder, or logits that differ where they must not.
    """
    unknown = [name for name in targets if name not in TARGETS]
    if unknown:
        raise OmpqError(f"there is no target {unknown[0]!r}; choose of {', '.join(TARGETS)}")
    folder = Path(folder)
    check_writable(folder, "folder")
    tests = prepare_test_images(read, images)
    return [_export(read, name, folder, tests, say) for name in targets]


def prepare_test_images(read: Artifact, images: Tensor | None) -> TestImages:
    """Return images of 8-bit pixels, with the logits of a quantized network.

    Args:
        read: Quantized network.
        images: Images, n × channels × height × width, normalised; None for random pixels.
    """
    if images is None:
        images = draw_images(read)
    shape = tuple(read.network.input_shape)
    if images.dim() != 4 or tuple(images.shape[1:]) != shape or not len(images):
        raise OmpqError(
            f"`images` are of {tuple(images.shape)}; the network takes n × "
            f"{' × '.join(map(str, shape))}"
        )
    tests = TestImages.of(images.float().cpu(), read.preprocess)
    module = read.network.module.eval()
    device = find_device(module)
    with torch.inference_mode():
        logits = [module(batch.to(device)).cpu() for batch in tests.images.split(_BATCH)]
    return replace(tests, logits=torch.cat(logits))


def draw_images(read: Artifact, count: int = TEST_IMAGES) -> Tensor:
    """Draw images of random pixels, normalised, float32, n × channels × height × width."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(count, *read.network.input_shape, generator=generator)
    preprocess = read.preprocess
    shape = (-1, 1, 1)
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    return (drawn - mean.view(shape)) / std.view(shape)


def _export(
    read: Artifact, name: str, folder: Path, tests: TestImages, say: Callable[[str], None]
) -> Exported:
    target = TARGETS[name]
    try:
        with temporary_folder(folder / _ROOM) as beside:
            written = target.write(read, tests.first(TEST_IMAGES), beside)
            file = beside / written.file
            promised = read.description["model_size_mb"] * _MIB
            found, computed = Exported(file, written.size, promised, notes=written.notes), None
            try:
                found, computed = _check(read, target, file, tests, found)
                if target.is_packed:
                    _compare_with_plain(read, file, tests, beside)
            except NoRuntime as missing:
                say(str(missing))
            except OmpqError as error:
                # The folder that it names is gone by the time that this is read.
                raise OmpqError(str(error).replace(f"{beside}{os.sep}", "")) from error
            if target.has_images:
                _leave_test_images(file, target, tests, computed)
            put_all_into_place(beside, folder)
    except OSError as error:
        raise OmpqError(f"cannot write to {folder}: {error.strerror or error}") from error
    return replace(found, file=folder / written.file, name=written.file)


def _check(
    read: Artifact, target: Target, file: Path, tests: TestImages, found: Exported
) -> tuple[Exported, Tensor | None]:
    """Run what was written; its logits are given where it has test images."""
    if file.suffix == ".safetensors" and read.description["architecture"].get("own"):
        raise NoRuntime(
            f"{file.name} is of a module of your own, read by load_quantized(path, network); it "
            "was not run"
        )
    computed = None
    if target.has_images:
        checked, computed = check_file(file, found.size, tests)
    else:
        checked = check_c(file, found.size)
    checked = replace(checked, promised=found.promised, notes=(*found.notes, *checked.notes))
    return insist(checked, target.is_exact), computed


def _leave_test_images(
    file: Path, target: Target, tests: TestImages, computed: Tensor | None
) -> None:
    """Write a few test images beside a file, with its checksum and its logits, if it was run."""
    replace(
        tests.first(TEST_IMAGES),
        computed=None if computed is None else computed[:TEST_IMAGES],
        checksum=compute_checksum(file.read_bytes()),
        exact=target.is_exact,
    ).save(find_test_images(file))


def _compare_with_plain(read: Artifact, file: Path, tests: TestImages, room: Path) -> None:
    """Compare the packed form with the plain one, whose logits it has to the bit."""
    with temporary_folder(room.parent / _ROOM) as other:
        plain = other / TARGETS["onnx"].write(read, tests, other).file
        expected = compute_logits(open_file(plain), tests.images)
        computed = compute_logits(open_file(file), tests.images)
    differing = count_differing(computed, expected)
    if differing:
        raise OmpqError(
            f"the packed model computes something else than the plain one: {differing} of "
            f"{computed.numel()} logits differ; please report this network"
        )
