"""Fine-tuning drops what the float network drops in training; its integers drop nothing."""

from __future__ import annotations

from pathlib import Path

import torch
from support import lively
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from ompq.artifact import load_quantized, save_quantized
from ompq.assignment import uniform
from ompq.graph import trace
from QAT import TrainingSettings, fine_tune, prepare, verify


class Residual(nn.Module):
    """A branch that is dropped by whole images, and dropout before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.drop = nn.BatchNorm2d(8), StochasticDepth(0.5, "row")
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.drop(self.norm(self.branch(x))))
        x = F.dropout(x.mean((2, 3)), 0.5, self.training)
        return self.head(x)


def test_steps_of_training_are_active_there_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = lively(Residual())
    images, labels = torch.randn(32, 3, 8, 8), torch.arange(32) % 4
    graph = trace(network, (3, 8, 8))
    widths = uniform(graph.groups, 8)
    made = prepare(graph, widths, images)
    made.freeze_norms()
    module = made.module.train()
    outputs = torch.stack([module(images) for _ in range(20)])
    assert (outputs.std(0).amax(1) > 0).all(), "every image meets something that is dropped"
    settings = TrainingSettings(epochs=2, learning_rate=0.01)
    fine_tune(made, [(images, labels)] * 2, [(images, labels)], settings, say=lambda _: None)
    assert torch.equal(module.eval()(images), module(images))
    assert verify(made, [(images, labels)]).equal == len(images)
    save_quantized(tmp_path / "quantized.safetensors", made, widths)
    read = load_quantized(tmp_path, network)
    assert torch.equal(read.network.module(images), module(images))


class Attending(nn.Module):
    """Attention that drops in training, and noise that is written into the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        if self.training:
            x = x + torch.randn_like(x)
        dropped = 0.5 if self.training else 0.0
        x = F.scaled_dot_product_attention(x, x, x, dropout_p=dropped)
        return self.head(x.mean(1))


def test_arguments_of_training_are_given_there_and_what_is_left_out_is_told() -> None:
    torch.manual_seed(0)
    images, notes = torch.randn(8, 3, 8, 8), list[str]()
    network = Attending().eval()
    graph = trace(network, (3, 8, 8))
    made = prepare(graph, uniform(graph.groups, 8), images, say=notes.append)
    assert [note for note in notes if "in training alone: randn_like" in note]
    module = made.module
    assert torch.equal(module.eval()(images), module(images))
    assert not torch.equal(module.train()(images), module(images))
