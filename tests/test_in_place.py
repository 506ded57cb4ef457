"""Changes in place: written as new values, of parts too, or refused where they would be lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kinds import draw_images
from torch import Tensor, nn
from torch.nn import functional

from ompq.assignment import uniform
from ompq.errors import OmpqError
from ompq.graph import trace, trace_for
from PTQ import Settings, quantize_network
from QAT import prepare

Change = Callable[[Tensor], Tensor]


class Changing(nn.Module):
    """Two convolutions, a change, an average and a classifier."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3)
        self.head, self.change = nn.Linear(8, 4), change

    def forward(self, x: Tensor) -> Tensor:
        x = self.change(self.second(functional.relu(self.first(x), True)))
        return self.head(x.mean((2, 3)))


def on_part(change: Change) -> Change:
    def run(x: Tensor) -> Tensor:
        change(x)
        return x

    return run


CHANGES = {
    "module": nn.Hardswish(inplace=True),
    "keyword": lambda x: functional.silu(x, inplace=True),
    "by its place": lambda x: functional.leaky_relu(x, 0.1, True),
    "method": lambda x: x.sigmoid_(),
    "function": lambda x: functional.elu_(x),
    "operator": lambda x: x.__imul__(functional.relu(x)),
    "given as output": lambda x: (torch.add(x, 1.0, out=x), x)[1],
    "part added to": on_part(lambda x: x[:, :4].add_(1.0)),
    "part of a part": on_part(lambda x: x[:, :4][:, 1:].mul_(2)),
    "part zeroed": on_part(lambda x: x[:, 2].zero_()),
    "part filled": on_part(lambda x: x[..., :3].fill_(0.5)),
    "part replaced": on_part(lambda x: x[:, :4].copy_(x[:, 4:])),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_what_changes_in_place_is_quantized_like_new_values(name: str) -> None:
    torch.manual_seed(0)
    network, images = Changing(CHANGES[name]).eval(), draw_images(32)
    with torch.no_grad():
        expected = network(images.clone())
    widths = uniform(trace(network, (3, 32, 32)).groups, 8, 8)
    settings = Settings(weight_iterations=2, act_iterations=2, batch_size=8, varied_copies=0)
    reconstructed, _ = quantize_network(network, widths, images, settings, say=str)
    trained = prepare(network, widths, images, say=str)
    assert reconstructed.integers is not None
    for module in (reconstructed.module, reconstructed.integers.module, trained.module):
        with torch.no_grad():
            found = module(images.clone())
        assert float((found - expected).norm() / expected.norm()) < 0.03


@pytest.mark.parametrize(
    "change",
    [lambda x: x.transpose(1, 2).add_(1), lambda x: x.flatten(1).mul_(2)],
    ids=["turned", "flattened"],
)
def test_what_changes_another_view_is_refused(change: Change) -> None:
    torch.manual_seed(0)
    with pytest.raises(OmpqError, match="computes something else"):
        trace_for(Changing(on_part(change)).eval(), draw_images(2))
