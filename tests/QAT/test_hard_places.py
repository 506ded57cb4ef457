"""Operations at the places where rounded values hurt: roots and divisors at 0, triangles."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kinds import draw_images
from torch import Tensor, nn
from torch.nn.functional import relu

from ompq.assignment import uniform
from ompq.graph import trace
from ompq.integer import IntegerNetwork
from QAT import prepare


class Around(nn.Module):
    """An operation between two convolutions and a classifier."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3)
        self.head, self.operation = nn.Linear(8, 4), operation

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.operation(self.second(relu(self.first(x)))).mean((2, 3)))


def convert(operation: Callable[[Tensor], Tensor]) -> tuple[nn.Module, IntegerNetwork]:
    torch.manual_seed(0)
    network = Around(operation).eval()
    widths = uniform(trace(network, (3, 32, 32)).groups, 8, 8)
    return network, prepare(network, widths, draw_images(32), say=str)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: torch.sqrt(x * x + 1e-3),
        lambda x: x.clamp(min=1e-6).pow(3).mean((2, 3), keepdim=True).pow(1 / 3),
    ],
    ids=["root", "generalised mean"],
)
def test_gradients_stay_finite_at_a_root_of_zero(operation: Callable[[Tensor], Tensor]) -> None:
    _, converted = convert(operation)
    converted.module.train()
    converted.module(draw_images(32)).sum().backward()
    gradients = [p.grad for p in converted.module.parameters() if p.grad is not None]
    assert gradients and all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert any(bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize("operation", [torch.tril, torch.triu])
def test_triangles_are_masks_of_their_own_size(operation: Callable[[Tensor], Tensor]) -> None:
    network, converted = convert(operation)
    assert converted.runs_on_integers
    images = draw_images(32)
    with torch.no_grad():
        expected, found = network(images), converted.module(images)
    assert float((found - expected).norm() / expected.norm()) < 0.03


def test_a_divisor_that_rounds_to_zero_is_told() -> None:
    _, converted = convert(lambda x: relu(x - 1) / (relu(x - 1).sum(1, keepdim=True) + 1e-6))
    (note,) = [line for line in converted.notes if "not finite" in line]
    assert note.startswith("truediv (truediv): of rounded values")


class Twice(nn.Module):
    """A classifier called on two values, one of which is `share` of the other."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.body, self.head, self.share = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 4), share

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.body(x)).mean((2, 3))
        return self.head(x) + self.head(self.share * x)


@pytest.mark.parametrize(("share", "told"), [(0.02, True), (0.5, False)])
def test_values_far_apart_that_share_a_scale_are_told(share: float, told: bool) -> None:
    torch.manual_seed(0)
    network = Twice(share).eval()
    widths = uniform(trace(network, (3, 32, 32)).groups, 8, 8)
    notes = prepare(network, widths, draw_images(32), say=str).notes
    found = [line for line in notes if line.startswith("head: what it reads at one call")]
    assert bool(found) == told
    assert not told or "50 times" in found[0]


def test_channels_far_apart_are_made_even_before_fine_tuning() -> None:
    torch.manual_seed(0)
    depthwise, pointwise = nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 8, 1)
    factors = torch.logspace(-2, 2, 16)
    depthwise.weight.data.mul_(factors.view(-1, 1, 1, 1))
    depthwise.bias.data.mul_(factors)
    pointwise.weight.data.div_(factors.view(1, -1, 1, 1))
    parts = nn.Conv2d(3, 16, 3, 2), nn.ReLU(), depthwise, nn.ReLU(), pointwise, nn.ReLU()
    network = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    images, widths = draw_images(32), uniform(trace(network, (3, 16, 16)).groups, 8, 8)
    errors = []
    with torch.no_grad():
        for even in (False, True):
            converted = prepare(network, widths, images, even_channels=even, say=str)
            difference = converted.module(images) - network(images)
            errors.append(float(difference.norm() / network(images).norm()))
    assert errors[1] < 0.5 * errors[0]
    assert all(torch.equal(network.state_dict()[name], value) for name, value in weights.items())
