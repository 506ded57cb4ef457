"""Fine-tuning at widths that another tool chose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ompq.errors import OmpqError
from ompq.graph import NetworkGraph, trace
from ompq.zoo import load_network
from QAT.options import build_parser
from QAT.preparation import _choose_assignment


@pytest.fixture(scope="module")
def graph() -> NetworkGraph:
    return trace(load_network("small_resnet").module, (3, 16, 16))


def choose(graph: NetworkGraph, file: Path):
    line = ["--arch", "small_resnet", "--bit_cfg", str(file)]
    return _choose_assignment(build_parser().parse_args(line), graph, None)


def test_files_of_other_tools_beside_hawq_s(graph: NetworkGraph, tmp_path: Path) -> None:
    (tmp_path / "bits.csv").write_text("layer;bits\n*;4\nclassifier;8\n")
    found = choose(graph, tmp_path / "bits.csv")
    assert found.layer_bits()["classifier"] == 8
    assert set(found.bits) == {4}
    layers = {f"model.{layer}": {"quant_algo": "W4A8_AWQ"} for layer in graph.layers}
    (tmp_path / "modelopt.json").write_text(json.dumps({"quantized_layers": layers}))
    assert set(choose(graph, tmp_path / "modelopt.json").widths) == {4}
    (tmp_path / "flat.json").write_text(json.dumps(dict.fromkeys(graph.layers, 5)))
    assert set(choose(graph, tmp_path / "flat.json").widths) == {5}
    (tmp_path / "hawq.json").write_text(json.dumps({"quant_init_convbn": 4}))
    assert choose(graph, tmp_path / "hawq.json").layer_bits()["stem.0"] == 4
    (tmp_path / "few.csv").write_text("stem.0,4\n")
    with pytest.raises(OmpqError, match=r"gives no bits to stages\.0\.0\.conv1"):
        choose(graph, tmp_path / "few.csv")
