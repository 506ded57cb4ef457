"""The benchmarks run, and what they compare is the same computation."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from support import lively

from benchmarks.contestants import export_float, open_float, open_openvino, time_in_turns
from benchmarks.deploy import compare
from benchmarks.rerunning import quantize_rerunning
from ompq.assignment import uniform
from ompq.errors import OmpqError
from ompq.export.runtimes import open_onnx
from ompq.graph import fold_batch_norm, trace
from ompq.zoo import load_network
from PTQ.quantize import quantize_network
from PTQ.settings import Settings


def test_running_the_networks_anew_gives_what_one_pass_gives() -> None:
    torch.manual_seed(0)
    graph = trace(lively(load_network("small_resnet").module), (3, 16, 16))
    images = torch.randn(20, 3, 16, 16)
    # Without steps nothing is random: all that remains is which values reach which block.
    settings = Settings(
        weight_iterations=0, act_iterations=0, vary_images=False, correct_biases=False
    )
    assignment = uniform(graph.groups, 3)
    network, _ = quantize_network(graph, assignment, images, settings)
    anew = quantize_rerunning(graph, assignment, images, settings)
    with torch.no_grad():
        assert torch.equal(anew(images), network.module(images))
        assert not torch.equal(anew(images), graph.module(images))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "figures"),
    [
        ("bit_search", ["--num_images", "4", "--repeats", "1"], {"orthogonality"}),
        (
            "ptq",
            ["--input_size", "16", "--num_images", "8", "--steps", "1", "--total_images", "8",
             "--total_size", "16", "--total_steps", "2", "1"],
            {"loop / search", "ratio", "step / plain", "total ratio", "peak memory MB"},
        ),
        ("qat", ["--steps", "1"], {"quantized ms", "frozen ms", "learned / float"}),
    ],
    ids=["bit_search", "ptq", "qat"],
)  # fmt: skip
def test_every_benchmark_measures(
    name: str, options: list[str], figures: set[str], script, tmp_path: Path
) -> None:
    ran = script(f"benchmarks/{name}.py", "--networks", "small_resnet", *options,
                 "--output_dir", tmp_path, "--device", "cpu")  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    content = json.loads((tmp_path / f"{name}.json").read_text())
    for row in content["rows"]:
        assert figures <= set(row), row.keys()
        assert all(row[figure] > 0 for figure in figures)


def test_contestants_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    runs = [lambda: calls.append("a"), lambda: calls.append("b")]
    spent = time_in_turns(runs, rounds=3)
    assert [len(seconds) for seconds in spent] == [3, 3]
    # Each runs once to fill the caches, and once more.
    assert calls == ["a", "a", "b", "b"] * 4


def test_rows_are_compared_with_the_floats_by_their_medians() -> None:
    rows = [
        {"what": "torch float", "bytes": 400, "rounds ms": [8.0, 90.0, 9.0]},
        {"what": "C model.c", "bytes": 110, "rounds ms": [3.0]},
        {"what": "not run", "bytes": 90, "rounds ms": []},
    ]
    torch_float, program, idle = compare(rows, promised=100)
    assert torch_float["least ms"] == 8 and torch_float["median ms"] == 9
    assert program["x torch float"] == 3 and program["of promised"] == 1.1
    assert program["x ONNX Runtime float"] is None
    assert idle["median ms"] is None and idle["x torch float"] is None


def test_floats_compute_the_same_everywhere(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    network = lively(load_network("small_resnet").module).eval()
    image = torch.randn(1, 3, 16, 16)
    folded = fold_batch_norm(trace(network, (3, 16, 16)))
    with torch.no_grad():
        expected = network(image)
    notes: list[str] = []
    file = export_float(folded.module, image, tmp_path / "float.onnx", notes.append)
    assert file is not None and not notes
    found = [open_float(folded.module), open_onnx(file)]
    with contextlib.suppress(OmpqError):  # where it is not installed
        found.append(open_openvino(file, (3, 16, 16), threads=1))
    for opened in found:
        torch.testing.assert_close(opened.run(image), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_what_is_exported_is_measured_beside_floats(script, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    file = tmp_path / "figures" / "deploy.json"
    ran = script("benchmarks/deploy.py", "--networks", "small_resnet", "--input_size", 16,
                 "--rounds", 2, "--bits", 3, "--output", file)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    (found,) = json.loads(file.read_text())["rows"]
    kernels = found["kernels"]
    assert kernels["model.packed.onnx"] == kernels["model.onnx"]
    convolutions = kernels["model.onnx"]["QLinearConv"]
    assert convolutions > 10
    assert f"model.packed.onnx {convolutions} QLinearConv, 1 QGemm, " in ran.stdout
    rows = {row["what"]: row for row in found["rows"]}
    assert set(found["bits"]) == {3}
    assert {"torch float", "ompq integers", "ompq, entropy coded"} <= set(rows)
    for name in ("model.onnx", "model.packed.onnx", "model.integer.onnx"):
        assert rows[f"ONNX Runtime {name}"]["x torch float"] > 0
        assert len(rows[f"ONNX Runtime {name}"]["rounds ms"]) == 2
    packed, plain = rows["ONNX Runtime model.packed.onnx"], rows["ONNX Runtime model.onnx"]
    assert 1 < packed["of promised"] < plain["of promised"] < rows["torch float"]["of promised"]


def test_one_checkpoint_is_not_for_several_networks(script) -> None:
    ran = script("benchmarks/deploy.py", "--path", "weights.pt")
    assert ran.returncode == 2
    assert "--path holds the weights of one network" in ran.stderr
