"""Quantization for a device: what it sets, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import ROOT

from ompq.errors import OmpqError
from ompq.graph import NetworkGraph, trace
from ompq.zoo import load_network
from PTQ.options import build_parser, read_assignment, read_settings

NPU = str(ROOT / "examples" / "targets" / "npu.yaml")


@pytest.fixture(scope="module")
def graph() -> NetworkGraph:
    return trace(load_network("small_resnet").module, (3, 16, 16))


def parse(*options: str):
    return build_parser().parse_args(["--arch", "small_resnet", "--target", NPU, *options])


def test_a_device_sets_what_nobody_asked_otherwise(graph: NetworkGraph) -> None:
    settings = read_settings(parse())
    assert (settings.symmetric, settings.per_channel, settings.act_quant) == (True, True, True)
    found = read_assignment(parse("--n_bits_w", "4"), graph)
    assert found.act_bits == 8
    assert found.widths[0] == found.widths[-1] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--no-sym"], "--no-sym: target"),
        (["--n_bits_a", "4"], "--n_bits_a 4: target"),
        (["--n_bits_w", "3"], "stages.0.0.conv1 has 3 bits, conv may have 4, 8"),
        (["--quant_scheme", "uniform2"], "has 2 bits, conv may have 4, 8"),
        (["--bit_cfg", f"[{', '.join(['4'] * 14)}]"], "classifier has 4 bits, linear may have 8"),
    ],
)
def test_what_contradicts_the_device_is_refused(options, message: str, graph, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["ompq-ptq", *options])
    arguments = parse(*options)
    with pytest.raises(OmpqError) as refused:
        read_assignment(arguments, graph)
    told = arguments.parser.in_flags(str(refused.value))
    assert message in told
    assert "npu.yaml" in told


def test_one_scale_per_layer(tmp_path: Path, graph: NetworkGraph) -> None:
    (tmp_path / "layer.yaml").write_text("per_channel: false\n")
    line = ["--arch", "small_resnet", "--target", str(tmp_path / "layer.yaml")]
    assert not read_settings(build_parser().parse_args(line)).per_channel
    assert not read_settings(build_parser().parse_args(line)).act_quant
    with pytest.raises(OmpqError, match=r"`per_channel`: target .* one weight scale per layer"):
        read_settings(build_parser().parse_args([*line, "--channel_wise"]))
