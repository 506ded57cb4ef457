"""The command: what it prints, what it refuses in one line, what it leaves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from support import ROOT, lively, run_command

from ompq import artifact
from ompq.assignment import uniform
from ompq.errors import OmpqError
from ompq.export.__main__ import run
from ompq.export.options import build_parser
from ompq.graph import trace
from ompq.integer import ConversionSettings, calibrate, convert_to_integers
from ompq.zoo import load_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a run leaves it: a network of integers, and its results."""
    network = load_network("small_resnet", num_classes=10)
    lively(network.module)
    graph = trace(network.module, (3, 32, 32))
    widths = uniform(graph.groups, 4, 8)
    bits = widths.layer_bits(), widths.layer_act_bits()
    integers = convert_to_integers(graph, *bits, ConversionSettings())
    calibrate(integers, [torch.randn(8, 3, 32, 32)], torch.device("cpu"))
    made = tmp_path_factory.mktemp("made")
    file = made / artifact.FILE
    preprocess = network.preprocess
    artifact.save_quantized(file, integers, widths, source=network, preprocess=preprocess)
    arguments = {"dataset": "digits", "data": None}
    (made / "results.json").write_text(json.dumps({"arguments": arguments}))
    return made


def call(*arguments: object) -> None:
    run(build_parser().parse_args(list(map(str, arguments))))


def test_it_ends_with_a_table_of_files_on_the_images_of_the_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(folder, "--to", "packed", "--output_dir", tmp_path, "--num_images", 12)
    told = capsys.readouterr().out
    size = (tmp_path / "model.ompq.safetensors").stat().st_size
    (line,) = [line for line in told.splitlines() if line.startswith("model.ompq.safetensors")]
    assert f" {size} " in line and " 0 of 120 " in line
    assert "random pixels" not in told
    assert f"written to {tmp_path}/" in told
    call("--verify", tmp_path / "model.ompq.safetensors")
    assert " 0 of 80 " in capsys.readouterr().out


def test_without_a_data_set_it_says_what_it_compared_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(folder / artifact.FILE, "--to", "packed", "--output_dir", tmp_path, "--num_images", 4)
    assert "random pixels" not in capsys.readouterr().out
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((folder / artifact.FILE).read_bytes())
    call(alone, "--to", "packed", "--num_images", 4)
    assert "random pixels" in capsys.readouterr().out
    assert (tmp_path / "model.ompq.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--to"),
        (["DIR"], "--to"),
        (["DIR", "--to", "packed", "--packed"], "--packed and --integer go with --to onnx"),
        (["DIR", "--to", "c", "--entropy"], "--entropy goes with --to packed"),
        (["nowhere", "--to", "c"], "does not exist"),
        (["DIR", "--to", "c", "--verify", "model.c"], "leave out DIR"),
        (["--verify", "model.c", "--num_images", "4"], "leave out --num_images"),
        (["--verify", "nowhere.onnx"], "does not exist"),
        (["DIR", "--to", "packed", "--dataset", "imagenet", "--data", "nowhere"], "nowhere"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    options: list[str], message: str, folder: Path, tmp_path: Path
) -> None:
    given = [folder if option == "DIR" else option for option in options]
    with pytest.raises(OmpqError, match=message) as caught:
        call(*given)
    assert "\n" not in str(caught.value)


def test_a_mistake_ends_in_one_line(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ompq.export"]
    done = run_command([*command, str(tmp_path), "--to", "c"], tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
