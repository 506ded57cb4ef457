"""A network whose code was changed since it was written is not taken for the one of its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from converted import build
from rewritten import read_plain
from support import lively
from torch import Tensor, nn

from ompq import artifact
from ompq.assignment import uniform
from ompq.errors import OmpqError
from ompq.graph import trace
from ompq.probe import probe
from ompq.quantized import QuantizedNetwork, make_quantizable
from ompq.zoo import load_network

IMAGES = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Own(nn.Module):
    """A network of one's own; what is given is changed in its code."""

    def __init__(self, *, slope: float = 1.0, norm: bool = False, **conv: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, **({"padding": 1} | conv))
        self.norm = nn.LayerNorm(8) if norm else None
        self.slope = slope
        self.last = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.first(images) * self.slope).mean((2, 3))
        return self.last(features if self.norm is None else self.norm(features))


def save_own(file: Path, network: nn.Module, simulated: bool = False) -> None:
    graph = trace(network, tuple(IMAGES.shape[1:]))
    widths = uniform(graph.groups, 8, 8)
    quantized = make_quantizable(graph, widths) if simulated else build(network, IMAGES)
    artifact.save_quantized(file, quantized, widths)


@pytest.mark.parametrize("simulated", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    "changed", [{"stride": 3}, {"dilation": 2, "padding": 2}, {"padding_mode": "circular"}]
)
def test_changed_code_is_refused(
    changed: dict[str, Any], norm: bool, simulated: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    file = tmp_path / artifact.FILE
    save_own(file, Own(norm=norm).eval(), simulated)
    artifact.load_quantized(file, Own(norm=norm))
    if norm and not simulated and "padding_mode" in changed:
        return  # floats are rounded there, and so small a change may be that
    with pytest.raises(OmpqError, match=r"Own computes something else .*was changed") as refused:
        artifact.load_quantized(file, Own(norm=norm, **changed))
    assert "\n" not in str(refused.value)


def test_a_changed_file_of_the_user_is_refused(tmp_path: Path) -> None:
    code, file = tmp_path / "own.py", tmp_path / artifact.FILE
    text = (
        "from torch import nn\n"
        "def make(num_classes=5):\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, STRIDE), nn.ReLU(), nn.AdaptiveAvgPool2d(1),\n"
        "        nn.Flatten(), nn.Linear(8, num_classes))\n"
    )
    code.write_text(text.replace("STRIDE", "1"))
    source = load_network(f"{code}:make", num_classes=5)
    widths = uniform(trace(source.module, (3, 12, 12)).groups, 8, 8)
    artifact.save_quantized(file, build(source.module, IMAGES), widths, source=source)
    read = artifact.load_quantized(file)
    artifact.write_artifact(tmp_path / "again.safetensors", read)
    assert read_plain(file)[1]["probe"] == read_plain(tmp_path / "again.safetensors")[1]["probe"]
    code.write_text(text.replace("STRIDE", "2"))
    for name in (artifact.FILE, "again.safetensors"):
        with pytest.raises(OmpqError, match=rf"{name}: .*own\.py:make computes something"):
            artifact.load_quantized(tmp_path / name)


def test_a_file_without_outputs_is_read(tmp_path: Path) -> None:
    network = load_network("small_resnet", num_classes=5)
    lively(network.module)
    graph = trace(network.module, (3, 12, 12))
    widths = uniform(graph.groups, 8, 8)
    file = tmp_path / artifact.FILE
    artifact.save_quantized(file, make_quantizable(graph, widths), widths, source=network)
    assert "probe" not in read_plain(file)[1]
    artifact.load_quantized(file)


def test_the_modes_of_modules_stay() -> None:
    graph = trace(Own().eval(), (3, 12, 12))
    network = QuantizedNetwork(graph)
    network.module.train()
    network.graph.layer_module("first").eval()
    before = [part.training for part in network.module.modules()]
    assert len(probe(network)) == 5
    assert [part.training for part in network.module.modules()] == before
    with torch.no_grad():
        network.graph.layer_module("last").bias.fill_(torch.nan)
    assert probe(network) == []
