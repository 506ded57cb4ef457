"""What is exported is what a device computes, or is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from saved import IMAGES, save

from ompq.activation_memory import measure_peak
from ompq.artifact import Artifact, load_quantized, save_quantized
from ompq.assignment import uniform
from ompq.errors import OmpqError
from ompq.export.__main__ import export
from ompq.export.device import check_device
from ompq.export.options import build_parser
from ompq.graph import trace
from ompq.integer import ConversionSettings, calibrate, convert_to_integers
from ompq.target import Target
from ompq.zoo import load_network


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = load_network("small_resnet")
    graph = trace(source.module, (3, 16, 16))
    widths = uniform(graph.groups, 4, 8)
    chosen = widths.layer_bits(), widths.layer_act_bits()
    network = convert_to_integers(graph, *chosen, ConversionSettings())
    calibrate(network, [IMAGES], torch.device("cpu"))
    file = tmp_path_factory.mktemp("integers") / "quantized.safetensors"
    save_quantized(file, network, widths, source=source)
    return file


def refuse(read: Artifact, **options) -> str:
    with pytest.raises(OmpqError) as refused:
        check_device(read, Target("d.yaml", **options))
    return str(refused.value)


def test_widths_and_scales_of_integers(integers: Path) -> None:
    read = load_quantized(integers)
    check_device(read, Target("d.yaml", weight_bits=(4, 8), activation_bits=(8,), symmetric=True))
    assert "stages.0.0.conv1 has 4 bits, conv may have 8" in refuse(read, weight_bits=(8,))
    assert "reads 8 bits, activations may have 4" in refuse(read, activation_bits=(4,))
    assert "one weight scale per layer, and stem.0 has 16" in refuse(read, per_channel=False)
    assert "1 KB for weights, and these take" in refuse(read, flash_kb=1.0)
    graph = trace(load_network("small_resnet").module, (3, 16, 16))
    kb = measure_peak(graph, uniform(graph.groups, 4, 8)).kb
    check_device(read, Target("d.yaml", act_memory_kb=kb))
    told = refuse(read, act_memory_kb=kb - 0.01)
    assert f"KB for activations, and these take {kb:.4f} KB at stages.0.0.conv2" in told


def test_simulated_networks(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    save(tmp_path / "a", symmetric=False, per_channel=False, activations=False)
    read = load_quantized(tmp_path / "a")
    assert "this network has floats" in refuse(read, activation_bits=(8,))
    assert "stem.0 has one; quantize" in refuse(read, symmetric=True)
    check_device(read, Target("d.yaml", weight_bits=(3, 8), per_channel=False, symmetric=False))
    save(tmp_path / "b", symmetric=True, per_channel=True, activations=False)
    check_device(load_quantized(tmp_path / "b"), Target("d.yaml", symmetric=True))


def test_the_command_refuses_before_it_writes(integers: Path, tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text("operations: {linear: [4]}\n")
    line = [str(integers.parent), "--to", "packed", "--target", str(tmp_path / "d.yaml")]
    line += ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(OmpqError, match="classifier has 8 bits, linear may have 4"):
        export(build_parser().parse_args(line))
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True
