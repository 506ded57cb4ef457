"""A teacher sees the student's images as its own; one that tells other classes is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import ROOT
from torch import nn

from ompq.data import make_loader
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess
from QAT.distillation import Teacher, load_teacher
from QAT.options import build_parser, list_unused_options

EARLIER = ROOT / "tests" / "earlier"
STUDENT = Preprocess(8, 8, (0.3, 0.4, 0.5), (0.2, 0.3, 0.4))
CPU = torch.device("cpu")
OWN = """
from torch import nn
from ompq.preprocess import Preprocess

def make(num_classes=10):
    network = nn.Sequential(nn.Conv2d({channels}, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 7))
    network.preprocess = Preprocess(16, 16, {mean}, {std}, "bicubic")
    return network
"""


def read_digits(preprocess: Preprocess) -> torch.Tensor:
    return next(iter(make_loader("digits", None, "val", preprocess, 64)))[0]


@pytest.mark.parametrize(
    "own",
    [
        STUDENT,
        Preprocess(8, 8, (0.5, 0.5, 0.5), (0.5, 0.25, 1.0)),
        Preprocess(16, 16, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), "bicubic"),
        Preprocess(12, 12, (0.3,), (0.7,)),
    ],
    ids=["the student's", "other normalisation", "larger", "grey"],
)
def test_a_teacher_sees_what_its_own_loader_would_give(own: Preprocess) -> None:
    teacher = Teacher(nn.Flatten(), STUDENT, own)
    expected = read_digits(own)
    torch.testing.assert_close(teacher.adapt(read_digits(STUDENT)), expected, rtol=1e-4, atol=1e-4)
    assert teacher(read_digits(STUDENT)).shape == (64, expected[0].numel())


def test_grey_images_are_coloured_for_a_teacher_and_coloured_ones_grey() -> None:
    grey = torch.rand(2, 1, 4, 4)
    plain = {1: Preprocess(4, 4, (0.0,), (1.0,)), 3: Preprocess(4, 4, (0.0,) * 3, (1.0,) * 3)}
    coloured = Teacher(nn.Identity(), plain[1], plain[3]).adapt(grey)
    assert torch.equal(coloured, grey.expand(2, 3, 4, 4))
    torch.testing.assert_close(Teacher(nn.Identity(), plain[3], plain[1]).adapt(coloured), grey)


def load(*options: object) -> tuple[Teacher | None, str]:
    """Return the teacher, or what the user reads."""
    parser = build_parser()
    given = ["--dataset", "digits", "--distill_method", "KD_naive", *map(str, options)]
    try:
        return load_teacher(parser.parse_args(given), 10, STUDENT, CPU), ""
    except OmpqError as error:
        return None, parser.in_flags(str(error))


def test_options_that_do_nothing_are_noted() -> None:
    parser = build_parser()
    learned = ["--quantizer", "lsq", "--weight_percentile", "99"]
    (note,) = list_unused_options(parser.parse_args(learned))
    assert note == "`quantizer` lsq learns step sizes, without `weight_percentile`"
    (note,) = list_unused_options(parser.parse_args(["--teacher_arch", "x", "--temperature", "9"]))
    assert parser.in_flags(note) == (
        "without --distill_method KD_naive there is no teacher for --teacher_arch, --temperature"
    )
    assert not list_unused_options(parser.parse_args([]))


def write_own(folder: Path, channels: int) -> str:
    values = {"channels": channels, "mean": (0.5,) * channels, "std": (0.5,) * channels}
    (folder / "own.py").write_text(OWN.format(**values))
    return f"{folder / 'own.py'}:make"


def test_the_preprocessing_of_a_teacher_is_its_own(tmp_path: Path) -> None:
    name = write_own(tmp_path, 3)
    network = load("--teacher_arch", name)
    assert network[0] is None and "has 7 classes, the network 10" in network[1]
    tiny, told = load(
        "--teacher_arch", f"{EARLIER / 'tiny.py'}:make", "--teacher_path", EARLIER / "tiny.pth"
    )
    assert tiny is not None and not told
    assert tiny.own == STUDENT, "a network that says nothing is given what the student sees"


@pytest.mark.parametrize("channels", [1, 3])
def test_other_classes_are_refused_by_the_teachers_name(channels: int, tmp_path: Path) -> None:
    name = write_own(tmp_path, channels)
    _, told = load("--teacher_arch", name)
    assert told.startswith(f"the teacher {name} (--teacher_arch) has 7 classes, the network 10")
    assert "--teacher_path" in told and "--num_classes" not in told
    other = tmp_path / "other.pth"
    state = torch.load(EARLIER / "tiny.pth", weights_only=True)
    torch.save(state | {"fc.weight": torch.ones(4, 16), "fc.bias": torch.ones(4)}, other)
    _, told = load("--teacher_arch", f"{EARLIER / 'tiny.py'}:make", "--teacher_path", other)
    assert "has 4 classes, the network 10" in told and "--num_classes" not in told
