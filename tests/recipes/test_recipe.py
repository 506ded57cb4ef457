"""What recipes say, and the command lines that they stand for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import ROOT

import bit_config
from mixed_bit.options import build_search_parser, read_settings
from ompq.errors import OmpqError
from recipes.commands import TOOLS, Places, build_commands
from recipes.recipe import Recipe, read_recipe

FILES = sorted((ROOT / "recipes").glob("*.yaml"))
TEACHER = ("teacher_arch", "teacher_path")
WHOLE = """
title: Everything
network: {arch: net.py:make, path: weights.pth}
data: {dataset: digits, mean: [0.1, 0.2, 0.3]}
search:
  quant_type: PTQ
  model_size: 0.1
  bits: {"*": [2, 3, 4], "layer4.*": [2, 4], conv1: 8}
  sweep: [0.1, 0.2]
ptq: {act_quant: true, n_bits_a: 8, sym: false}
qat:
  epochs: 1
  channel_wise: false
  distill_method: KD_naive
  teacher_arch: "{arch}"
  teacher_path: "{path}"
export: {to: onnx, packed: true}
expect: {top1: 90, standard_error: 0.5}
minutes: 3
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "own.yaml"
    file.write_text(text)
    return file


def test_a_recipe_becomes_command_lines(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, WHOLE))
    assert recipe.expectation.least == 89.0 and recipe.minutes == 3.0
    commands = build_commands(recipe, Places(output=Path("out")))
    arch = f"{tmp_path}/net.py:make"
    common = f"--arch {arch} --path weights.pth --dataset digits --mean 0.1,0.2,0.3"
    assert [str(command) for command in commands] == [
        f"ompq-bits {common} --quant_type PTQ --model_size 0.1 --bits 2,3,4 "
        "--bits 'layer4.*=2,4' --pin conv1=8 --sweep 0.1 0.2 --output_dir out/own/search",
        f"ompq-ptq {common} --bit_cfg out/own/search/bit_config.json --act_quant --n_bits_a 8 "
        "--no-sym --output_dir out/own/ptq",
        f"ompq-qat {common} --init_from out/own/ptq --epochs 1 --channel_wise false "
        f"--distill_method KD_naive --teacher_arch {arch} --teacher_path weights.pth "
        "--output_dir out/own/qat",
        "ompq-export out/own/qat --to onnx --packed --output_dir out/own/export",
    ]


def test_fine_tuning_goes_on_from_the_reconstruction_whatever_widths_it_names(
    tmp_path: Path,
) -> None:
    text = WHOLE.replace("epochs: 1", "epochs: 1\n  quant_scheme: uniform4")
    words = build_commands(read_recipe(write(tmp_path, text)), Places())[2].words
    assert words[words.index("--init_from") + 1] == "recipe_output/own/ptq"
    text = WHOLE.replace("epochs: 1", "epochs: 1\n  init_from: other")
    words = build_commands(read_recipe(write(tmp_path, text)), Places())[2].words
    assert words.count("--init_from") == 1 and words[words.index("--init_from") + 1] == "other"


def test_networks_and_weights_are_found_in_every_section(tmp_path: Path) -> None:
    text = WHOLE.replace("{arch: net.py:make", "{model: net.py:make")
    text = text.replace('"{arch}"', "other.py:make").replace('"{path}"', "other.pth")
    commands = build_commands(read_recipe(write(tmp_path, text)), Places(weights=Path("/w")))
    words = commands[2].words
    told = {key: words[words.index(f"--{key}") + 1] for key in ("arch", "path", *TEACHER)}
    assert told["arch"] == f"{tmp_path}/net.py:make" and told["path"] == "/w/weights.pth"
    assert told["teacher_arch"] == f"{tmp_path}/other.py:make"
    assert told["teacher_path"] == "/w/other.pth"


def test_own_weights_stand_in_for_an_authors(tmp_path: Path) -> None:
    text = WHOLE.replace("path: weights.pth", "pretrained: true").replace('"{path}"', "t.pth")
    words = build_commands(read_recipe(write(tmp_path, text)), Places(path=Path("mine.pth")))[
        0
    ].words
    assert "--pretrained" not in words and words[words.index("--path") + 1] == "mine.pth"


def test_switches_and_lists_are_said_as_the_commands_take_them(tmp_path: Path) -> None:
    text = WHOLE.replace("sym: false", "no-sym: false")
    text = text.replace("  sweep: [0.1, 0.2]", "  pin: ['a=4', 'b=8']")
    search, ptq, *_ = build_commands(read_recipe(write(tmp_path, text)), Places())
    assert ptq.parse().sym is True
    assert [w for w in search.words if "=" in w and "layer" not in w] == ["conv1=8", "a=4", "b=8"]


def test_globs_are_those_of_the_search(tmp_path: Path) -> None:
    text = WHOLE.replace("  sweep: [0.1, 0.2]\n", "")
    (command, *_) = build_commands(read_recipe(write(tmp_path, text)), Places())
    settings = read_settings(build_search_parser().parse_args(list(command.words)))
    assert settings.candidate_bits == (2, 3, 4)
    assert settings.candidate_bits_by_layer == {"layer4.*": (2, 4)}
    assert settings.pins == {"conv1": 8}


def test_files_are_where_they_are_said_to_be(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, WHOLE))
    places = Places(weights=Path("/weights"), data=Path("/images"))
    words = build_commands(recipe, places)[1].words
    assert words[words.index("--path") + 1] == "/weights/weights.pth"
    assert words[words.index("--data") + 1] == "/images"
    named = build_commands(recipe, Places(data=Path("/images"), data_of={"digits": Path("/d")}))
    assert named[1].words[words.index("--data") + 1] == "/d"
    qat = build_commands(recipe, Places(path=Path("mine.pth")))[2].words
    assert [qat[qat.index(f"--{key}") + 1] for key in ("path", "teacher_path")] == ["mine.pth"] * 2


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("minutes: 3", "minuets: 3", "unknown key minuets; did you mean minutes?"),
        ("minutes: 3", "minutes: -3", "minutes is -3; write a number"),
        ("title: Everything\n", "", "has no `title`"),
        ("act_quant: true", "act_quants: true", "ptq: unknown key act_quants; did you mean act_q"),
        ("act_quant: true", "act_quant: 3", "act_quant is 3; write true or false"),
        ("n_bits_a: 8", "n_bits_a:", "n_bits_a is None; write one value"),
        ("conv1: 8", "conv1: x", "conv1 is 'x'; write a width"),
        ("conv1: 8", "conv1: []", "write a width, or a list"),
        ("{top1: 90,", "{top9: 90,", "unknown key top9"),
        ("{top1: 90,", "{", "give one figure, top1 or agreement"),
        ("0.5}", "0.5, source: hearsay}", "it is measured or paper"),
        (", standard_error: 0.5", "", "there is no standard_error"),
        ("data: {dataset: digits, mean: [0.1, 0.2, 0.3]}", "data: digits", "data is 'digits'"),
        ("minutes: 3", "minutes: 3\nminutes: 4", "in line 20: minutes is there twice"),
        ("title: Everything", "title: [", "is no YAML in line"),
        ("title: Everything", "title: !!timestamp x", "is no YAML: a value does not fit its tag"),
        ("minutes: 3", f"minutes: {'9' * 400}", "write a number that is not negative"),
        ("epochs: 1", "epochs: many", "qat: argument --epochs: 'many' is not a whole number"),
        ("to: onnx", "to: wrong", "export: argument --to: invalid choice: 'wrong'"),
        ("conv1: 8", "1.10: 8", "1.1 is no text; write the layer in quotes"),
        ("epochs: 1", "epochs: 1\n  save_path: x", "save_path is no recipe's to say; results go"),
        ("epochs: 1", "epochs: 1\n  resume: x", "resume is no recipe's to say; ompq-run goes on"),
        ("epochs: 1", "evaluate: x", "evaluate is no recipe's to say"),
        (", path: weights.pth}", "}", "teacher_path names {path}; give network a path"),
        ("path: weights.pth", "path: ", "network: path is None; write one value"),
    ],
)
def test_what_no_recipe_has_is_one_line(
    before: str, after: str, message: str, tmp_path: Path
) -> None:
    assert before in WHOLE
    with pytest.raises(OmpqError) as refused:
        build_commands(read_recipe(write(tmp_path, WHOLE.replace(before, after))), Places())
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a recipe; give it title"),
        ("title: x\nnetwork: {}\ndata: {}\n", "has no stage"),
        ("title: x\nnetwork: {}\ndata: {}\nexport:\n", "nothing to export"),
        (
            "title: x\nnetwork: {}\ndata: {}\nsearch:\nexpect: {top1: 1, standard_error: 1}\n",
            "expect needs a stage",
        ),
    ],
)
def test_what_is_missing_is_told(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OmpqError, match=re.escape(message)):
        build_commands(read_recipe(write(tmp_path, text)), Places())
    with pytest.raises(OmpqError, match="cannot be read: No such file"):
        read_recipe(tmp_path / "other.yaml")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_recipes_of_the_repository_parse(file: Path) -> None:
    recipe = read_recipe(file)
    for command in build_commands(recipe, Places()):
        TOOLS[command.stage].build_parser().parse_args(list(command.words))
    arch = str(recipe.network["arch"])
    if ".py:" in arch:
        assert (file.parent / arch.partition(":")[0]).is_file()


def test_every_published_row_has_a_recipe_with_the_papers_figure() -> None:
    rows = {name: read_recipe(ROOT / f"recipes/paper_{name}.yaml") for name in bit_config.PUBLISHED}
    for name, recipe in rows.items():
        published = bit_config.PUBLISHED[name]
        assert recipe.data["dataset"] == "imagenet"
        (stage, options), (last, _) = recipe.stages.items()
        assert (stage, last) == (published.quant_type.lower(), "export")
        assert options["quant_scheme"] == name
        check_expectation(recipe, published.top1)


def check_expectation(recipe: Recipe, top1: float | None) -> None:
    """The paper's top-1 with the standard error of 50 000 images, where it gives one."""
    if top1 is None:
        assert recipe.expectation is None
        return
    expected = recipe.expectation
    assert expected is not None and expected.from_paper and expected.value == top1
    assert expected.standard_error == pytest.approx((top1 * (100 - top1) / 5e4) ** 0.5, abs=6e-3)
    assert "the paper's" in expected.describe()
