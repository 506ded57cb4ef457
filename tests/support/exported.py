"""Quantized networks as they come from their files, for tests of what is exported of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from converted import build
from sklearn.datasets import load_digits
from support import lively
from torch import Tensor, nn

from ompq.artifact import FILE, Artifact, load_quantized, save_quantized
from ompq.assignment import uniform
from ompq.data.pixels import normalise
from ompq.graph import trace
from ompq.preprocess import Preprocess
from ompq.zoo import load_network

DIGITS_PREPROCESS = Preprocess(8, 8, mean=(0.3,), std=(0.4,))


def make_artifact(
    network: nn.Module,
    images: Tensor,
    folder: Path,
    bits: int = 8,
    preprocess: Preprocess | None = None,
    class_names: Sequence[str] = (),
) -> Artifact:
    """Convert a network to integers of one width, write it to a file, and read it from there."""
    converted = build(network, images, bits)
    widths = uniform(trace(network, tuple(images.shape[1:])).groups, bits, 8)
    file = folder / FILE
    save_quantized(file, converted, widths, preprocess=preprocess, class_names=class_names)
    return load_quantized(file, network)


def save_small_network(folder: Path) -> Path:
    """Write the small residual network of the zoo in integers, and return the folder."""
    source = load_network("small_resnet", num_classes=7)
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    converted = build(lively(source.module), images, 4)
    widths = uniform(trace(source.module, (3, 16, 16)).groups, 4, 8)
    preprocess = Preprocess(16, 16)
    save_quantized(folder / FILE, converted, widths, source=source, preprocess=preprocess)
    return folder


def draw_digits() -> tuple[Tensor, Tensor]:
    """Return the digits as 8-bit pixels (n × 1 × 8 × 8, white on black), and their labels."""
    digits = load_digits()
    pixels = torch.tensor(digits.images * 255 / 16).round().to(torch.uint8)
    return pixels.unsqueeze(1), torch.tensor(digits.target)


def train_on_digits(steps: int = 80) -> nn.Module:
    """Train a small network that reads grey images, on the real digits."""
    torch.manual_seed(0)
    pixels, labels = draw_digits()
    images = normalise(pixels, DIGITS_PREPROCESS)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for step in range(steps):
        chosen = slice(step * 128 % 1500, step * 128 % 1500 + 128)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return network.eval()
