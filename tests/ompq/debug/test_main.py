"""The command, on a folder as a run leaves it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from converted import build

from ompq.artifact import FILE, save_quantized
from ompq.assignment import uniform
from ompq.debug.__main__ import run
from ompq.debug.options import build_parser
from ompq.errors import OmpqError
from ompq.files import lock_folder
from ompq.graph import trace
from ompq.zoo import load_network

FORMAT = "ompq-qat-results/1"


@pytest.fixture(scope="module")
def folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of integers with its results, on the digits."""
    made = tmp_path_factory.mktemp("run")
    network = load_network("small_resnet", path=trained)
    shape = (3, 32, 32)
    quantized = build(network.module, torch.randn(8, *shape), 4)
    widths = uniform(trace(network.module, shape).groups, 4, 8)
    save_quantized(made / FILE, quantized, widths, source=network, preprocess=network.preprocess)
    given = {"model": "small_resnet", "path": str(trained), "dataset": "digits", "data": None}
    (made / "results.json").write_text(json.dumps({"format": FORMAT, "arguments": given}))
    return made


def call(*arguments: object) -> None:
    run(build_parser().parse_args(list(map(str, arguments))))


def test_it_prints_a_table_and_writes_beside(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(folder, "--num_images", 6, "--shown", 3)
    told = capsys.readouterr().out
    assert "on 6 images of digits" in told and "what helps" in told
    content = json.loads((folder / "debug.json").read_text())
    assert content["num_images"] == 6 and len(content["layers"]) > 3
    assert (folder / "debug.png").is_file()


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (None, "give the output folder of a finished run"),
        ("{", "cannot be read"),
        ('{"arguments": 3}', "cannot be read"),
        (
            '{"arguments": {"model": "small_resnet", "path": "gone.pth", "dataset": "digits"}}',
            "gone",
        ),
        ('{"arguments": {"dataset": "digits"}}', "names no network"),
    ],
)
def test_what_is_missing_is_one_line(
    results: str | None, message: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_bytes((folder / FILE).read_bytes())
    if results is not None:
        (tmp_path / "results.json").write_text(results)
    with pytest.raises(OmpqError, match=message) as raised:
        call(tmp_path)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "debug.json").exists()


def test_a_folder_in_which_a_run_goes_on_is_left_alone(tmp_path: Path) -> None:
    given = {"model": "small_resnet", "dataset": "digits"}
    (tmp_path / "results.json").write_text(json.dumps({"format": FORMAT, "arguments": given}))
    with lock_folder(tmp_path), pytest.raises(OmpqError, match="is in use by a run"):
        call(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
