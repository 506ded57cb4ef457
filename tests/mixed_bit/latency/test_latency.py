"""Latency tables: read, budgeted, and measured with ONNX Runtime."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mixed_bit import SearchSettings, build_bit_config, search
from mixed_bit.latency.onnx_timing import build_layer_model, time_layers
from mixed_bit.latency.table import LatencyTable, load_latency
from ompq.errors import OmpqError
from ompq.graph import NetworkGraph, trace
from ompq.zoo import load_network

SEARCH = "mixed_bit/feature_extract.py"
MEASURE = "mixed_bit/measure_latency.py"


@pytest.fixture(scope="module")
def graph() -> NetworkGraph:
    torch.manual_seed(0)
    return trace(load_network("small_resnet").module, (3, 16, 16))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def build_table(graph: NetworkGraph, widths: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Build a table of different times for every layer; wider is slower."""
    return {
        layer: {str(width): round((index + 1) * width / 1000, 6) for width in widths}
        for index, layer in enumerate(graph.layers)
    }


def write_table(table: object, file: Path) -> Path:
    file.write_text(json.dumps(table))
    return file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[1]", "expected"),
        ("{}", "expected"),
        ('{"conv1": 3}', "conv1 is 3"),
        ('{"conv1": {"eight": 3}}', "conv1 has 'eight'"),
        ('{"conv1": {"8": "fast"}}', "conv1 has '8': 'fast'"),
        ('{"conv1": {"8": -1}}', "-1"),
        ('{"conv1": {"8": NaN}}', "nan"),
        ('{"conv1": {"8": true}}', "True"),
        ("\\xff", "cannot be read"),
    ],
)
def test_a_table_that_is_none_says_where(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "table.json").write_text(text)
    with pytest.raises(OmpqError, match=message) as refused:
        load_latency(tmp_path / "table.json")
    assert "table.json" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_width_that_was_not_measured_runs_as_the_next_wider(graph: NetworkGraph) -> None:
    names = list(graph.layers)
    table = LatencyTable({name: {4: 1.0, 8: 2.0} for name in names}, "table.json")
    alone = next(group for group in graph.groups if len(group.layers) == 1)
    tied = next(group for group in graph.groups if len(group.layers) == 2)
    assert [table.cost(alone, width) for width in (2, 3, 4, 5, 8)] == [10**6] * 3 + [2 * 10**6] * 2
    assert table.cost(tied, 2) == 2 * 10**6
    with pytest.raises(OmpqError, match=r"no time for 9 bits|9 bits or more"):
        table.cost(alone, 9)
    short = LatencyTable({name: {4: 1.0} for name in names[1:]}, "table.json")
    with pytest.raises(OmpqError, match=f"no times for the layer {names[0]}"):
        short.cost(graph.groups[0], 4)


@pytest.mark.parametrize("metric", ["orm", "sqnr"])
def test_a_latency_budget_is_kept_and_the_best_is_found(
    metric: str, graph: NetworkGraph, images: torch.Tensor, tmp_path: Path
) -> None:
    table = load_latency(write_table(build_table(graph, (2, 3, 4)), tmp_path / "table.json"))
    widest = table.total_ms(graph.groups, (4,) * len(graph.groups))
    pins = {group.name: 4 for group in graph.groups[:-5]}
    settings = SearchSettings(
        "PTQ", latency_ms=widest * 0.85, latency_table=table, metric=metric, pins=pins
    )
    result = search(graph, images, settings)
    assert result.allocation.optimal
    assert table.total_ms(graph.groups, result.assignment.widths) <= widest * 0.85
    scale = np.exp(result.sensitivity.log_scale)[:, None] * result.sensitivity.weights
    fixed = len(graph.groups) - 5
    best = min(
        sum(scale[fixed + i, k] for i, k in enumerate(choice))
        for choice in itertools.product(range(3), repeat=5)
        if table.total_ms(graph.groups, [4] * fixed + [2 + k for k in choice]) <= widest * 0.85
    )
    found = sum(scale[fixed + i, bits - 2] for i, bits in enumerate(result.allocation.bits[-5:]))
    assert found == pytest.approx(best, rel=1e-9)
    details = build_bit_config(result, "small_resnet", seed=0).details
    assert details["latency_ms"] == pytest.approx(
        table.total_ms(graph.groups, result.allocation.bits)
    )


@pytest.mark.slow
def test_a_budget_from_the_command_line(script, graph: NetworkGraph, tmp_path: Path) -> None:
    table = build_table(graph, (2, 4))
    file = write_table(table, tmp_path / "table.json")
    common = ["--model", "small_resnet", "--dataset", "digits", "--quant_type", "PTQ"]
    common += ["--num_images", 8, "--output_dir", tmp_path]
    widest = sum(entry["4"] for entry in table.values())
    run = script(SEARCH, *common, "--latency", widest * 0.8, "--latency_table", file)
    assert run.returncode == 0, run.stderr
    config = json.loads((tmp_path / "bit_config.json").read_text())
    assert widest * 0.5 < config["latency_ms"] <= widest * 0.8
    run = script(SEARCH, *common, "--latency", widest / 9, "--latency_table", file)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1), run.stderr
    assert "--latency " in run.stderr
    assert "the least with these widths" in run.stderr


def run_module(module: nn.Module, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return module(images).numpy()


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(8, 12, 3, padding=1), (2, 8, 9, 9)),
        (nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False), (1, 3, 32, 32)),
        (nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), (1, 8, 11, 11)),
        (nn.Conv2d(8, 16, 1, stride=2), (1, 8, 12, 12)),
        (nn.Conv2d(4, 4, (1, 7), padding=(0, 3)), (1, 4, 9, 13)),
        (nn.Conv2d(4, 6, 3, padding=2, dilation=2), (1, 4, 9, 9)),
        (nn.Linear(20, 7), (3, 20)),
        (nn.Linear(20, 7, bias=False), (2, 5, 20)),
    ],
)
def test_a_layer_becomes_the_same_layer_in_onnx(module: nn.Module, shape, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    # From -1 to 0, as integers 0 to 128: processors without VNNI add pairs of products in 16 bits.
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 1
    expected = run_module(module, images)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")

    def run(width: int, given: np.ndarray) -> np.ndarray:
        model = build_layer_model(module, shape, expected.shape, width)
        onnx.checker.check_model(model)
        session = runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        flat = given.reshape(session.get_inputs()[0].shape)
        return session.run(None, {"input": flat})[0].reshape(expected.shape)

    np.testing.assert_allclose(run(32, images.numpy()), expected, atol=1e-5)
    integers = np.rint(images.numpy() * 255 / 2 + 128).clip(0, 255).astype(np.uint8)
    found = run(8, integers).astype(float) - 128
    step = (found * expected).sum() / (found * found).sum()
    assert np.abs(found * step - expected).max() < 2.5 * step, "the same within its steps"
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert kinds & {"QLinearConv", "QGemm"}, "computed in integers"
    assert not kinds & {"Conv", "Gemm", "DequantizeLinear"}


def test_every_layer_is_timed_once_per_call(graph: NetworkGraph) -> None:
    pytest.importorskip("onnxruntime")
    times = list(time_layers(graph, repeats=4, threads=1))
    assert [one.layer for one in times] == list(graph.layers)
    assert all(set(one.milliseconds) == {8, 32} for one in times)
    assert all(value > 0 for one in times for value in one.milliseconds.values())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["deit_tiny_patch16_224", "inception_v3", "regnet_x_400mf"])
def test_any_network_is_timed(model: str) -> None:
    pytest.importorskip("onnxruntime")
    network = load_network(model)
    side = network.preprocess.input_size
    graph = trace(network.module, (3, side, side))
    times = list(time_layers(graph, repeats=4, batch_size=2))
    assert len(times) == len(graph.layers)


@pytest.mark.slow
def test_a_measured_table_is_a_budget(script, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    file = tmp_path / "measured.json"
    run = script(MEASURE, "--model", "small_resnet", "--repeats", 4, "--output", file)
    assert run.returncode == 0, run.stderr
    assert "all layers" in run.stdout
    table = json.loads(file.read_text())
    total = sum(entry["8"] for entry in table.values())
    common = ["--model", "small_resnet", "--dataset", "digits", "--num_images", 8]
    options = [*common, "--output_dir", tmp_path, "--latency_table", file, "--latency"]
    run = script(SEARCH, *options, total + 0.001)
    assert run.returncode == 0, run.stderr
    assert script(SEARCH, *options, total * 0.9).returncode == 2
    refused = script(MEASURE, "--model", "small_resnet", "--repeats", 1)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
