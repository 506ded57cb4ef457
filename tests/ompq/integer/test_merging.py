"""What a network writes as several operations is one where it computes one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from converted import build, count_equal, measure_error, train
from kinds import Net, conv, draw_images
from operating import OPERATING, OpenNorm, make
from torch import Tensor, nn
from torch.nn import functional as F

from ompq import load_quantized, save_quantized
from ompq.activation_memory import measure_peak
from ompq.assignment import uniform
from ompq.graph import fold_batch_norm, trace
from ompq.integer import IntegerNetwork

IMAGES = draw_images(8)
# Name of a network → how many operations of their own it has, and how many nodes these were.
WRITTEN = {
    "norm written out": (1, 11),
    "softmax written out": (2, 6),
    "gelu written out": (1, 8),
}


def make_written(name: str) -> Net:
    torch.manual_seed(0)
    return OPERATING[name]()


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_out_is_one_operation(name: str) -> None:
    network = make_written(name)
    converted = build(network, IMAGES)
    operations, nodes = WRITTEN[name]
    assert converted.runs_on_integers
    assert len(converted.operations()) == operations
    ((_, gone),) = converted.merged.items()
    assert len(gone) + 1 >= nodes
    assert count_equal(converted, IMAGES) == len(IMAGES)
    assert measure_error(converted, network, IMAGES) < 0.03
    train(converted, IMAGES)
    assert count_equal(converted, IMAGES) == len(IMAGES)


def test_what_is_written_out_is_as_good_as_the_module() -> None:
    torch.manual_seed(0)
    written = make(
        lambda net, x: net.b(net.norm(net.a(x))), a=conv(8, 8), norm=OpenNorm(8), b=conv(8, 8)
    )
    written.norm.weight.data.normal_()

    class Whole(nn.LayerNorm):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    whole = make(
        lambda net, x: net.b(net.norm(net.a(x))), a=conv(8, 8), norm=Whole(8, 1e-6), b=conv(8, 8)
    )
    whole.load_state_dict(written.state_dict())
    found = [build(network, IMAGES).module(IMAGES) for network in (written, whole)]
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 0.01


KEPT: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "a sum of exact forms": lambda net, x: net.b(x + F.relu(x)),
    "a value that others read": lambda net, x: net.b((y := torch.sigmoid(x)) * x) + y,
    "a layer inside": lambda net, x: x * torch.sigmoid(net.b(x)),
    "a mean over images": lambda net, x: net.b(x - x.mean(0, keepdim=True)),
    "a spread over images": lambda net, x: net.b(x / (x.var(0, False, True) + 1).sqrt()),
    "a comparison": lambda net, x: net.b(x * (x == x.amax(1, keepdim=True))),
    "another shape": lambda net, x: net.b(x * torch.sigmoid(x.mean((2, 3), keepdim=True))),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_not_one_stays_as_it_is(name: str) -> None:
    torch.manual_seed(0)
    network = make(KEPT[name], b=conv(8, 8))
    converted = build(network, IMAGES)
    assert not converted.merged
    assert measure_error(converted, network, IMAGES) < 0.03
    assert count_equal(converted, IMAGES) == len(IMAGES)


def test_what_is_in_float_keeps_its_nodes() -> None:
    torch.manual_seed(0)

    def forward(net: Net, x: Tensor) -> Tensor:
        x = torch.cumsum(x, 1)
        return net.b(x * torch.sigmoid(x))

    network = make(forward, b=conv(8, 8))
    converted = build(network, IMAGES)
    assert converted.float_operations.keys() >= {"cumsum", "sigmoid", "mul"}
    assert count_equal(converted, IMAGES) == len(IMAGES)


def test_a_file_holds_what_was_merged(tmp_path: Path) -> None:
    network = make_written("norm written out")
    graph = trace(network, (3, 16, 16))
    converted = build(fold_batch_norm(graph), IMAGES, 4)
    file = tmp_path / "quantized.safetensors"
    save_quantized(file, converted, uniform(graph.groups, 4, 4))
    with torch.inference_mode():
        expected = converted.module(IMAGES)
        read = load_quantized(file, network).network
        assert torch.equal(read.module(IMAGES), expected)
    assert isinstance(read, IntegerNetwork)
    assert read.merged == converted.merged


def test_what_is_inside_of_an_operation_takes_no_memory() -> None:
    written, whole = (
        trace(make_written(name), (3, 16, 16)) for name in ("norm written out", "norm of channels")
    )
    peaks = [measure_peak(graph, uniform(graph.groups, 8, 8)).kb for graph in (written, whole)]
    assert peaks[0] <= peaks[1]
