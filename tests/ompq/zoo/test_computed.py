"""Checkpoints of pruned and normalised networks in the plain network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from ompq.zoo import load_network

FILE = """
from torch import nn

def make(num_classes=5):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, num_classes),
    )
"""


def _prune(layer: nn.Module) -> None:
    prune.random_unstructured(layer, "weight", 0.5)


def _prune_channels(layer: nn.Module) -> None:
    prune.ln_structured(layer, "weight", 0.5, n=2, dim=0)


WRAPPERS: dict[str, Callable[[nn.Module], object]] = {
    "prune": _prune,
    "prune_channels": _prune_channels,
    "weight_norm": weight_norm,
    "weight_norm_of_columns": lambda layer: weight_norm(layer, dim=1),
    "weight_norm_of_all": lambda layer: weight_norm(layer, dim=None),
    "spectral_norm": spectral_norm,
    "parametrized_weight_norm": parametrizations.weight_norm,
    "parametrized_spectral_norm": parametrizations.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_plain_network_computes_what_the_wrapped_one_does(
    name: str, prefix: str, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(FILE)
    torch.manual_seed(0)
    namespace: dict[str, Callable[[], nn.Sequential]] = {}
    exec(FILE, namespace)
    network = namespace["make"]()
    for layer in (network[0], network[3], network[7]):
        WRAPPERS[name](layer)
    images = torch.randn(4, 3, 8, 8)
    network(images)
    network.eval()
    state = {prefix + key: value for key, value in network.state_dict().items()}
    torch.save(state, tmp_path / "wrapped.pth")
    found = load_network(f"{tmp_path / 'net.py'}:make", path=tmp_path / "wrapped.pth")
    torch.testing.assert_close(found.module(images), network(images))
    assert "weights computed: 3 by" in found.source


def test_a_network_with_the_wrapper_keeps_its_own_names(tmp_path: Path) -> None:
    file = FILE.replace("    return nn.Sequential(", "    network = nn.Sequential(") + (
        "    nn.utils.parametrizations.weight_norm(network[3])\n    return network\n"
    )
    (tmp_path / "net.py").write_text(file)
    network = load_network(f"{tmp_path / 'net.py'}:make").module
    torch.save(network.state_dict(), tmp_path / "own.pth")
    found = load_network(f"{tmp_path / 'net.py'}:make", path=tmp_path / "own.pth")
    assert "computed" not in found.source
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(found.module(images), network(images))
