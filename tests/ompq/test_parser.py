"""What a mistyped command line is told, and what a path may be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ompq.errors import OmpqError
from ompq.options import add_data_options, add_network_options, add_run_options
from ompq.parser import Parser, read_text


def build() -> Parser:
    parser = Parser(prog="some.py")
    add_network_options(parser, "--model", required=False)
    add_data_options(parser, "images", "--data")
    add_run_options(parser, "output", "--save_path")
    return parser


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_clases", "3"], "did you mean --num_classes"),
        (["--num-classes=3"], "did you mean --num_classes"),
        (["--savepath", "x", "--Mean=3"], "did you mean --save_path --mean"),
        (["--xyz"], "unrecognized arguments: --xyz; see some.py --help"),
        (["resnet18"], "unrecognized arguments: resnet18; see some.py --help"),
        (["--num_classes", "3MB"], "--num_classes: '3MB' is not a whole number"),
        (["--data", ""], "--data: an empty path"),
        (["--data", "~no-such-user-here/x"], "--data: ~no-such-user-here/x: there is no such home"),
    ],
)
def test_mistyped_options_are_suggested(words: list[str], message: str) -> None:
    with pytest.raises(OmpqError) as caught:
        build().parse_args(words)
    assert message in str(caught.value)


def test_home_folders_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    told = build().parse_args(["--save_path=~/a b", "--path", "~/w.pth", "--data", "./~"])
    assert (told.output_dir, told.path) == (tmp_path / "a b", tmp_path / "w.pth")
    assert told.data == Path("~")


@pytest.mark.parametrize(
    ("started", "shown"), [("/usr/bin/ompq-qat", "ompq-qat"), ("QAT/quant_train.py", "some.py")]
)
def test_errors_name_the_command_that_was_typed(
    started: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [started])
    with pytest.raises(OmpqError, match=f"see {shown} --help"):
        build().parse_args(["--xyz"])


def test_fields_become_flags() -> None:
    parser = Parser(fields={"size_mb": "model_size"})
    parser.add_argument("--model_size")
    told = parser.in_flags("`size_mb` is 0; see `unknown`")
    assert told == "--model_size is 0; see `unknown`"


def test_a_field_that_several_options_set_is_called_as_it_was_typed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parser = Parser(prog="some.py", fields={"size_mb": ("model_size", "sweep")})
    parser.add_argument("--model_size")
    parser.add_argument("--sweep", nargs=2)
    for words, flag in (([], "--model_size"), (["--sweep", "1", "2"], "--sweep")):
        monkeypatch.setattr(sys, "argv", ["some.py", *words])
        assert parser.in_flags("`size_mb` 1 is below 2") == f"{flag} 1 is below 2"


def test_a_text_that_names_a_file_knows_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of/mine")
    parser = Parser()
    parser.add_argument("--bit_cfg", type=read_text)
    assert parser.parse_args(["--bit_cfg=~/bits.json"]).bit_cfg == "/home/of/mine/bits.json"
    assert parser.parse_args(["--bit_cfg", "[4, 3]"]).bit_cfg == "[4, 3]"
