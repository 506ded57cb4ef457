"""Places of arranging operations against what the network's integers do on images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from converted import build
from kinds import Net, build_kind, conv, draw_images, pooled
from operating import OPERATING
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.functional import interpolate, max_pool1d, pad, relu

from ompq.export.arrangements import trace_arrangements, trace_constant, trace_pixels
from ompq.graph.operations import operation
from ompq.integer import IntegerExecution, IntegerNetwork, export_integers
from ompq.integer.forms import find_tensors

# Each takes images of 8 channels of 8 × 8 and gives images of 8 channels.
ARRANGEMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda x: x.view(x.shape[0], 8, 4, 16),
    "transpose": lambda x: x.transpose(2, 3),
    "permute": lambda x: x.permute(0, 2, 1, 3),
    "chunks": lambda x: torch.cat(x.chunk(2, dim=1)[::-1], dim=1),
    "split": lambda x: torch.cat([x.split([3, 5], dim=1)[1], x.split([3, 5], 1)[0]], dim=1),
    "slices": lambda x: x[:, :, ::2, 1:7],
    "zeros around": lambda x: pad(x, (1, 2, 0, 1)),
    "copies around": lambda x: pad(x, (2, 1, 1, 2), mode="reflect"),
    "cropped": lambda x: pad(x, (-1, 0, 0, 2)),
    "pixel shuffle": lambda x: torch.pixel_unshuffle(torch.pixel_shuffle(x, 2), 2),
    "roll": lambda x: torch.roll(x, (1, 3), (2, 3)),
    "nearest": lambda x: interpolate(x, scale_factor=2.0),
    "flip": lambda x: x.flip(3),
    "repeat": lambda x: x.repeat(1, 1, 1, 2),
    "shuffle": lambda x: x.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8),
    "stacked pieces": lambda x: torch.stack(x.unbind(1)[::-1], dim=1),
}


class Recording(IntegerExecution):
    """Runs integers and keeps every value."""

    def __init__(self, network: IntegerNetwork) -> None:
        super().__init__(network, export_integers(network, mixed=True))
        self.values: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = self.values[n.name] = super().run_node(n)
        return value


def build_with(arrange: Callable[[Tensor], Tensor]) -> IntegerNetwork:
    torch.manual_seed(0)
    network = Net(
        lambda net, x: net.head(pooled(net.b(arrange(relu(net.a(x)))))),
        a=conv(3, 8, 2),
        b=conv(8, 8),
        head=nn.Linear(8, 5),
    )
    return build(network.eval(), draw_images(2))


def check(network: IntegerNetwork) -> int:
    """Compare all places of a network with one image's values; return how many there are."""
    recording = Recording(network)
    recording.logits(draw_images(1))
    nodes = {node.name: node for node in network.module.graph.nodes}
    found = trace_arrangements(network)
    for name, places in found.items():
        (source,) = (s for s in nodes[name].all_input_nodes if s.meta.get("from_images"))
        read = [part.flatten() for part in find_tensors(recording.values[source.name])]
        elements = torch.cat([*read, torch.zeros(1, dtype=torch.int64)])
        results = find_tensors(recording.values[name])
        assert [part.shape for part in places] == [part.shape for part in results]
        for part, result in zip(places, results, strict=True):
            assert torch.equal(elements[part], result)
    return len(found)


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_places_tell_what_an_operation_does_to_integers(name: str) -> None:
    assert check(build_with(ARRANGEMENTS[name])) > 0


@pytest.mark.parametrize("name", ["pieces", "windows", "normalises itself"])
def test_places_of_networks_of_kinds(name: str) -> None:
    assert check(build(build_kind(name), draw_images(2))) > 0


def test_zeros_that_are_put_in_have_no_place() -> None:
    network = build_with(lambda x: pad(x, (0, 1, 0, 0)))
    (places,) = (p[0] for p in trace_arrangements(network).values() if p[0].shape[-1] == 9)
    assert (places[..., 8] == -1).all()
    assert torch.equal(places[..., :8], torch.arange(512).view(1, 8, 8, 8))


@pytest.mark.parametrize(
    "choose",
    [
        lambda x: x.amax(1, keepdim=True).expand(-1, 8, -1, -1),
        lambda x: x.amin(dim=1, keepdim=True).repeat(1, 8, 1, 1),
        lambda x: x.max(dim=1, keepdim=True)[0].expand(-1, 8, -1, -1),
        lambda x: max_pool1d(x.flatten(2), 3, 1, 1).view(-1, 8, 8, 8),
    ],
)
def test_choices_among_values_are_no_arrangements(choose: Callable[[Tensor], Tensor]) -> None:
    network = build_with(choose)
    names = ("amax", "amin", "max", "max_pool1d")
    nodes = [node for node in network.module.graph.nodes if node.op.startswith("call_")]
    chosen = {node.name for node in nodes if operation(node, network.module) in names}
    assert len(chosen) == 1
    assert not trace_arrangements(network).keys() & chosen
    assert check(network) > 0


def find_images(network: IntegerNetwork) -> Node:
    """Find the node that the first layer reads, before it is quantized."""
    nodes = [n for n in network.module.graph.nodes if n.op == "call_module"]
    return nodes[0].all_input_nodes[0]


def test_pixels_that_the_network_arranges_are_told() -> None:
    network = Net(
        lambda net, x: net.head(pooled(relu(net.a(pad(x[:, [2, 1, 0]], (0, 1, 0, 0)))))),
        a=conv(3, 8),
        head=nn.Linear(8, 5),
    )
    converted = build(network.eval(), draw_images(2))
    places = trace_pixels(converted, find_images(converted))
    pixels = torch.arange(3 * 16 * 16).view(1, 3, 16, 16)
    assert places is not None
    assert torch.equal(places[..., :16], pixels.flip(1))
    assert (places[..., 16] == -1).all()


def test_pixels_that_the_network_changes_have_no_places() -> None:
    converted = build(build_kind("normalises itself"), draw_images(2))
    assert trace_pixels(converted, find_images(converted)) is None


def test_constants_are_computed_as_integers_for_as_many_images_as_there_are() -> None:
    torch.manual_seed(0)
    network = build(OPERATING["class token"](), draw_images(4))
    nodes = {
        str(node.target): node
        for node in network.module.graph.nodes
        if str(node.target).startswith("constants.")
    }
    shapes = {path: tuple(trace_constant(network, node).shape) for path, node in nodes.items()}
    assert sorted(shapes.values()) == [(1, 1, 8), (1, 65, 8)]
    (token,) = [path for path, shape in shapes.items() if shape == (1, 1, 8)]
    alone, twice = (trace_constant(network, nodes[token], images) for images in (1, 2))
    assert torch.equal(twice, alone.repeat(2, 1, 1))
    # Of 24 bits, sign included.
    assert int(alone.abs().max()) == 2**23 - 1
    assert not alone.is_floating_point()
