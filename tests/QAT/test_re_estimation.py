"""Batch norms estimated anew at the end of a fine-tuning."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from ompq import evaluate, trace, uniform
from ompq.integer import IntegerNetwork
from QAT import ConversionSettings, TrainingSettings, fine_tune, prepare, verify
from QAT.re_estimation import list_norms, re_estimate_norms

IMAGES = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BATCHES = list(IMAGES.split(12))


class Small(nn.Module):
    """Two convolutions with batch norms, one of which averages all batches, and a lone norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.body, self.second = nn.Conv2d(6, 6, 3, bias=False), nn.BatchNorm2d(6, momentum=None)
        self.lone, self.head = nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.lone(torch.relu(self.second(self.body(x))) + 1)
        return self.head(torch.relu(x).mean((2, 3)))


def convert(**settings: bool) -> IntegerNetwork:
    torch.manual_seed(0)
    network = Small().eval()
    bits = uniform(trace(network, (3, 8, 8)).groups, 4)
    conversion = ConversionSettings(**settings)
    return prepare(network, bits, IMAGES, conversion, say=lambda _: None)


def average_slowly(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Average mean and unbiased variance of the first layer's outputs, batch by batch."""
    layer = module.get_submodule("stem")
    inputs: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach()))
    trained = copy.deepcopy(module.state_dict())
    fakes = [each for each in module.modules() if hasattr(each, "observing")]
    for fake in fakes:
        fake.observing = False
    module.train()
    with torch.no_grad():
        for images in BATCHES:
            module(images)
    for fake in fakes:
        fake.observing = True
    handle.remove()
    module.load_state_dict(trained)
    weight = layer.layer.weight.detach().double()
    step = weight.abs().amax((1, 2, 3), keepdim=True) / 127  # the first layer has 8 bits
    rounded = torch.round(weight / step) * step
    outputs = [conv2d(x.double(), rounded, layer.layer.bias.double()) for x in inputs]
    means = [out.mean((0, 2, 3)) for out in outputs]
    variances = [out.transpose(0, 1).flatten(1).var(1) for out in outputs]
    return torch.stack(means).mean(0), torch.stack(variances).mean(0)


def test_statistics_are_the_averages_over_all_batches() -> None:
    module = convert().module
    norm = module.get_submodule("stem").norm
    mean, variance = average_slowly(module)
    assert not torch.allclose(norm.running_mean.double(), mean, rtol=1e-2, atol=1e-2)
    re_estimate_norms(module, BATCHES)
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("learned", [False, True])
def test_nothing_else_changes(learned: bool) -> None:
    module = convert(learned=learned).module
    before = copy.deepcopy(module.state_dict())
    momenta = [norm.momentum for norm in list_norms(module)]
    re_estimate_norms(module, BATCHES)
    changed = {
        name.rpartition(".")[2]
        for name, value in module.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"running_mean", "running_var"}
    assert [norm.momentum for norm in list_norms(module)] == momenta
    assert len(momenta) == 3 and not module.training
    found = copy.deepcopy(module.state_dict())
    if not learned:  # weights that are folded first depend on what was there
        re_estimate_norms(module, BATCHES)
        for name, value in module.state_dict().items():
            torch.testing.assert_close(value, found[name], rtol=1e-4, atol=1e-5)


def labelled(network: IntegerNetwork) -> list[tuple[Tensor, Tensor]]:
    """Images and what the network answers: with other statistics it answers otherwise."""
    with torch.no_grad():
        return [(images, network.module(images).argmax(1)) for images in BATCHES]


def spoil(network: IntegerNetwork) -> None:
    with torch.no_grad():
        for norm in list_norms(network.module):
            norm.running_mean += 2 * torch.randn(6, generator=torch.Generator().manual_seed(1))


def train(network: IntegerNetwork, pairs: list[tuple[Tensor, Tensor]], **options: object):
    settings = TrainingSettings(epochs=1, learning_rate=0.0, weight_decay=0.0, **options)  # type: ignore[arg-type]
    lines: list[str] = []
    progress = fine_tune(network, pairs, pairs, settings, say=lines.append)
    return progress, lines


def test_what_is_better_then_is_kept_and_runs_on_integers() -> None:
    network = convert()
    re_estimate_norms(network.module, BATCHES)
    pairs = labelled(network)
    spoil(network)
    progress, lines = train(network, pairs)
    assert progress.re_estimated_top1 == progress.best_top1 > 95
    assert max(entry["top1"] for entry in progress.history) < progress.best_top1
    assert evaluate(network.module, pairs).top1 == progress.best_top1
    assert lines[-1] == f"batch norms estimated anew: top-1 {progress.best_top1:.2f} %"
    assert verify(network, pairs).equal == 48


def test_what_is_worse_then_is_not_kept() -> None:
    network = convert()
    pairs = labelled(network)
    progress, _ = train(network, pairs)
    assert progress.re_estimated_top1 is not None
    assert progress.re_estimated_top1 < progress.best_top1 == 100
    assert evaluate(network.module, pairs).top1 == 100


@pytest.mark.parametrize("options", [{"fix_norms": 0}, {"re_estimate_norms": False}])
def test_it_is_left_out_where_norms_are_kept(options: dict) -> None:
    network = convert()
    progress, lines = train(network, labelled(network), **options)
    assert progress.re_estimated_top1 is None
    assert not [line for line in lines if "anew" in line]
