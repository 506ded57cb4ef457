"""Options that scripts share: what images go through, and what is said of them."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from ompq.errors import OmpqError
from ompq.options import (
    Parser,
    add_data_options,
    add_network_options,
    add_run_options,
    check_classes,
    load_requested_network,
    make_evaluation_loader,
    name_outputs,
    note_unused,
    print_images,
)
from ompq.preprocess import Preprocess


def parse(*words: object) -> argparse.Namespace:
    parser = Parser(prog="some.py")
    add_network_options(parser, "--model", required=False)
    add_data_options(parser, "images", "--data")
    add_run_options(parser, "output")
    parser.add_argument("--bit_cfg")
    parser.add_argument("--quant_scheme")
    return parser.parse_args([str(word) for word in words])


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("own") / "own.py"
    file.write_text(
        "from torch import nn\n"
        "from ompq.preprocess import Preprocess\n"
        "def make(channels=3):\n"
        "    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1),\n"
        "                         nn.Flatten())\n"
        "def told():\n"
        "    network = make(1)\n"
        "    network.preprocess = Preprocess(32, 36, (0.4,), (0.2,))\n"
        "    return network\n"
    )
    return file


@pytest.mark.parametrize(
    ("factory", "words", "described"),
    [
        ("make", ["--input_size", 32], "resize 32 bilinear, crop 32, mean (0.485, 0.456, 0.406)"),
        ("make", ["--crop", 32, "--resize", 40], "resize 40 bilinear, crop 32, mean (0.485"),
        ("make", ["--mean", "0.5"], "resize 256 bilinear, crop 224, mean (0.5, 0.5, 0.5)"),
        (
            "make",
            ["--mean", "0.1,0.2 0.3", "--std", "1,2,3"],
            "mean (0.1, 0.2, 0.3), std (1, 2, 3)",
        ),
        ("make", ["--interpolation", "bicubic"], "resize 256 bicubic, crop 224"),
        ("make", ["--dataset", "digits"], "resize 8 bilinear, crop 8, mean (0.3058, 0.3058, "),
        ("told", [], "resize 36 bilinear, crop 32, mean (0.4), std (0.2), grey"),
        ("told", ["--dataset", "digits"], "resize 8 bilinear, crop 8, mean (0.4), std (0.2), grey"),
        ("told", ["--std", "0.5"], "mean (0.4), std (0.5), grey"),
    ],
)
def test_images_are_what_the_user_says(
    own: Path, factory: str, words: list[object], described: str
) -> None:
    _, preprocess = load_requested_network(parse("--model", f"{own}:{factory}", *words))
    assert described in preprocess.describe()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "-1"], "'-1' is not a whole number from 0 on"),
        (["--resize", "0"], "not a whole number above 0"),
        (["--mean", "a,b"], "is not a list such as 0.49,0.48,0.45"),
        (["--mean", "nan"], "is not a list such as"),
        (["--mean", "123.7,116.3,103.5"], "divide one of pixels in 0..255 by 255"),
        (["--std", "0"], "is not a list of positive numbers"),
        (["--interpolation", "nearest"], "invalid choice"),
    ],
)
def test_values_that_cannot_be_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(OmpqError, match=message):
        parse(*words)


def test_a_crop_that_does_not_fit_is_told_in_flags(own: Path) -> None:
    arguments = parse("--model", f"{own}:make", "--resize", 200)
    with pytest.raises(OmpqError) as refused:
        load_requested_network(arguments)
    told = arguments.parser.in_flags(str(refused.value))
    assert "--resize (200) is smaller than --input_size (224)" in told


def test_the_line_of_images_comes_once_with_its_notes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    print_images(parse(), Preprocess(), ["`data` is odd", "`data` is odd"])
    shown = capsys.readouterr().out.splitlines()
    assert shown == [f"images: {Preprocess().describe()}", "note: --data is odd"]
    monkeypatch.setenv("RANK", "1")
    print_images(parse(), Preprocess(), ["odd"])
    assert capsys.readouterr().out == ""


def test_what_a_folder_tells_is_not_asked_for_again() -> None:
    (note,) = note_unused(parse("--mean", "0.5", "--crop", 8, "--dataset", "digits"))
    assert note.endswith("not used: `input_size`, `mean`")
    assert note_unused(parse()) == []


def test_outputs_are_named_where_all_have_a_class() -> None:
    loader = make_evaluation_loader(parse("--dataset", "digits"), Preprocess(8, 8), 4)
    assert name_outputs(loader, 10) == tuple("0123456789")
    assert name_outputs(loader, 12) == ()
    assert check_classes(10, None) == []
