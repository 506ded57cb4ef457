"""An exported file beside the network of integers: its logits, its bytes, its seconds."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ompq.errors import OmpqError
from ompq.export.runtimes import OpenFile, open_onnx, open_packed, run_c
from ompq.export.seals import check_model, check_program
from ompq.export.test_images import SUFFIX, TestImages, find_test_images

# Runs that the time for an image is the median of.
_TIMED_RUNS = 10
_BATCH = 8
# Percentage of images for which a form that is not exact tells the class of the integers.
_EXPECTED_AGREEMENT = 99.0


@dataclass(frozen=True)
class Exported:
    """One exported file and what it computes; a line of the table.

    Attributes:
        file: Path of the file.
        size: Bytes that the network takes in it.
        promised: Bytes that the bit configuration promises; None where nobody knows.
        runtime: What ran it; empty where nothing did.
        load_seconds: Seconds that opening it took.
        image_seconds: Seconds for one image at a time, the median.
        logits: Number of logits that were compared with those of the network of integers.
        differing: Number of those that differ.
        largest: Largest difference between two logits, as a multiple of the logits' standard
            deviation; None where nothing was compared.
        agreement: Percentage of images with the same class.
        notes: What a user should know of it, one line each.
        name: Name of the file within the folder of the export; empty for that of the file alone.
    """

    file: Path
    size: int
    promised: float | None = None
    runtime: str = ""
    load_seconds: float | None = None
    image_seconds: float | None = None
    logits: int = 0
    differing: int = 0
    largest: float | None = None
    agreement: float | None = None
    notes: tuple[str, ...] = ()
    name: str = ""

    @property
    def title(self) -> str:
        """Return what the file is called in the table."""
        return self.name or self.file.name

    @property
    def of_promised(self) -> float | None:
        """Return the size in relation to the promised one."""
        return self.size / self.promised if self.promised else None

    def __str__(self) -> str:
        promise = "" if self.of_promised is None else f", {self.of_promised:.2f} × promised"
        ran = f"{self.differing} of {self.logits} logits differ in {self.runtime}"
        return f"{self.title}: {self.size} bytes{promise}; {ran if self.logits else 'not run'}"


def open_file(file: Path) -> OpenFile:
    """Open an exported file by what runs its kind.

    Raises:
        OmpqError: It is of no kind that can be run, its runtime is missing, or it is damaged.
    """
    if file.suffix == ".onnx":
        return open_onnx(file)
    if file.suffix == ".safetensors":
        return open_packed(file)
    raise OmpqError(f"{file} is no exported network: these end in .onnx, .safetensors or .c")


def compute_logits(opened: OpenFile, images: Tensor) -> Tensor:
    """Compute logits (n × …) of images, a few at a time."""
    return torch.cat([opened.run(batch) for batch in images.split(_BATCH)])


def check_file(file: Path, size: int, tests: TestImages) -> tuple[Exported, Tensor]:
    """Run a file on test images and compare its logits with those of the network of integers.

    Args:
        file: Exported file.
        size: Bytes that the network takes in it.
        tests: Images with their logits.

    Returns:
        What was found, and the file's logits.
    """
    opened = open_file(file)
    images = tests.images
    computed = compute_logits(opened, images)
    assert tests.logits is not None
    found = Exported(
        file=file,
        size=size,
        runtime=opened.runtime,
        load_seconds=opened.load_seconds,
        image_seconds=_time_images(opened, images),
        logits=computed.numel(),
        differing=count_differing(computed, tests.logits),
        largest=measure_largest_difference(computed, tests.logits),
        agreement=measure_agreement(computed, tests.logits),
    )
    return found, computed


def check_c(file: Path, size: int) -> Exported:
    """Compile a network in C and compare its sums with the test vectors beside it.

    Args:
        file: `NAME.c`.
        size: Bytes that the network takes in it.
    """
    found = run_c(file)
    agreement = 100.0 if not found.differing else None
    return Exported(
        file=file,
        size=size,
        runtime="cc",
        image_seconds=found.seconds,
        logits=found.logits,
        differing=found.differing,
        agreement=agreement,
    )


def verify_file(file: str | Path) -> Exported:
    """Run an exported file on the test images beside it, and compare with what it gave before.

    Args:
        file: File that `export_network` wrote, in its folder.

    Returns:
        What was found.

    Raises:
        OmpqError: The file, its images or its runtime is missing, or a form that is exact computes
            something else than the network of integers.
    """
    file = _find_file(Path(file))
    if file.suffix == ".c":
        return insist(check_c(file, check_program(file).size), is_exact=True)
    tests = check_model(file)
    if tests.logits is None:
        raise OmpqError(f"{find_test_images(file)} holds no logits; export the network again")
    found, computed = check_file(file, file.stat().st_size, tests)
    note = "it was not run where it was written"
    if tests.computed is not None:
        changed = count_differing(computed, tests.computed)
        note = f"{changed} of {found.logits} logits differ from those of the run that wrote it"
    return insist(replace(found, notes=(note,)), tests.exact)


def _find_file(path: Path) -> Path:
    """Return the model that a path means; a page's is the one beside it."""
    if path.is_dir():
        models = sorted(f.name for f in path.iterdir() if find_test_images(f).is_file())
        models += [f.name for f in path.glob("*.c")]
        hint = f", such as {path / models[0]}" if models else "; none lies in it"
        raise OmpqError(f"{path} is a folder; give a file that was exported{hint}")
    if not path.is_file():
        raise OmpqError(f"{path} does not exist; give a file that was exported")
    if path.suffix == ".html":
        return path.with_name("model.onnx")
    if path.name.endswith(SUFFIX):
        raise OmpqError(f"{path} goes with an exported file; give that one")
    if path.suffix == ".h":
        raise OmpqError(f"{path} goes with a network in C; give its .c file")
    return path


def insist(found: Exported, is_exact: bool) -> Exported:
    """Refuse a file of an exact form that computes something else; warn of one that is far off.

    Args:
        found: What a file computes.
        is_exact: Whether its logits are to be those of the network of integers.

    Raises:
        OmpqError: They are to be, and are not.
    """
    if is_exact and found.differing:
        raise OmpqError(
            f"{found.file} computes something else in {found.runtime}: {found.differing} of "
            f"{found.logits} logits differ from the network of integers; please report this network"
        )
    if found.agreement is not None and found.agreement < _EXPECTED_AGREEMENT:
        note = (
            f"{found.file.name} tells another class than the network of integers for "
            f"{100 - found.agreement:.1f} % of the images"
        )
        return replace(found, notes=(*found.notes, note))
    return found


def count_differing(logits: Tensor, expected: Tensor) -> int:
    """Count the logits that differ; expected ones are rounded to the type of the others."""
    return int((logits != expected.to(logits.dtype)).sum())


def measure_largest_difference(logits: Tensor, expected: Tensor) -> float:
    """Measure the largest difference of two logits, as a multiple of their standard deviation.

    >>> expected = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    >>> measure_largest_difference(expected + torch.tensor([0.0, 0.5]), expected)
    0.5
    """
    difference = float((logits.double() - expected.double()).abs().max())
    spread = float(expected.double().std(correction=0))
    return difference / spread if difference and spread else difference


def measure_agreement(logits: Tensor, expected: Tensor) -> float:
    """Measure for how many images both tell the same class, in per cent."""
    same = logits.flatten(1).argmax(dim=1) == expected.flatten(1).argmax(dim=1)
    return float(same.double().mean()) * 100


def _time_images(opened: OpenFile, images: Tensor) -> float:
    """Return the median seconds for one image at a time."""
    seconds = []
    for index in range(_TIMED_RUNS):
        image = images[index % len(images)][None]
        begin = time.perf_counter()
        opened.run(image)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)
