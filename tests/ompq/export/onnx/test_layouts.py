"""What arranges values in PyTorch does so in ONNX Runtime, for any number and type of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from kinds import Net, conv
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, pixel_shuffle, pixel_unshuffle

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from ompq.errors import OmpqError  # noqa: E402
from ompq.export.onnx.builder import GraphBuilder  # noqa: E402
from ompq.export.onnx.layouts import Arrangement, Arranger, arrange_one  # noqa: E402
from ompq.graph import trace  # noqa: E402
from ompq.graph.layout import ImageLayout, find_layout  # noqa: E402

# Each takes n images of 4 channels of 6 × 4.
ARRANGEMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda x: x,
    "flatten": lambda x: x.flatten(1),
    "flatten positions": lambda x: x.flatten(2),
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "unsqueeze": lambda x: x.unsqueeze(1).unsqueeze(-1),
    "piece": lambda x: x.chunk(2, dim=1)[1],
    "channel": lambda x: x[:, 2],
    "positions": lambda x: x[:, :, 1::2, -1],
    "swapped pieces": lambda x: torch.cat(x.split([1, 3], dim=1)[::-1], dim=1),
    "zeros": lambda x: pad(x, (1, 0, 2, 3)),
    "zeros and crops": lambda x: pad(x, (-1, 2, 0, -2)),
    "more channels": lambda x: pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3)),
    "copies": lambda x: pad(x.double(), (2, 1, 1, 2), mode="reflect").to(x.dtype),
    "edges": lambda x: pad(x.double(), (2, 1, 1, 2), mode="replicate").to(x.dtype),
    "flip": lambda x: x.flip(2, 3),
    "roll": lambda x: torch.roll(x, (1, 2), (1, 3)),
    "pixel shuffle": lambda x: pixel_shuffle(x.double(), 2).to(x.dtype),
    "pixel unshuffle": lambda x: pixel_unshuffle(x.double(), 2).to(x.dtype),
    "channel shuffle": lambda x: x.view(-1, 2, 2, 6, 4).transpose(1, 2).reshape(-1, 4, 6, 4),
    "nearest": lambda x: interpolate(x.double(), scale_factor=1.5).to(x.dtype),
    "repeat": lambda x: x.repeat(1, 1, 2, 1),
    "expand": lambda x: x[:, :1].expand(-1, 5, -1, -1),
    "diagonal": lambda x: x.diagonal(dim1=1, dim2=3),
    "diagonal matrix": lambda x: torch.diag_embed(x.flatten(1)[:, :5]),
    "overlapping windows": lambda x: x.unfold(2, 3, 1),
    "images second": lambda x: x.flatten(2).permute(2, 0, 1),
    "images last": lambda x: x.permute(1, 2, 3, 0),
    "tiles": lambda x: x.unfold(2, 3, 3).permute(0, 2, 1, 4, 3).flatten(0, 1),
    "interleaved tiles": lambda x: torch.cat([x[:, :, :3], x[:, :, 3:]]),
}
# What is there before: n images as they come, or arranged otherwise.
SOURCES: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: x,
    "images second": lambda x: x.permute(1, 0, 2, 3),
    "tiles": lambda x: torch.stack([x, x + 1000], dim=1).flatten(0, 1),
    "interleaved tiles": lambda x: torch.cat([x, x + 1000]),
}
BACK: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: x,
    "images second": lambda x: x.permute(1, 2, 3, 0),
    "tiles": lambda x: x.unflatten(0, (-1, 2)).flatten(2),
    "interleaved tiles": lambda x: x.unflatten(0, (2, -1)).flatten(2).transpose(0, 1),
}
TYPES = {
    "uint8": (torch.uint8, onnx.TensorProto.UINT8),
    "double": (torch.float64, onnx.TensorProto.DOUBLE),
    "float": (torch.float32, onnx.TensorProto.FLOAT),
}


def number(count: int) -> Tensor:
    """Number all elements of n images, from 1 on."""
    return torch.arange(1, 96 * count + 1).view(count, 4, 6, 4)


def describe(before: Callable[[Tensor], Tensor], arrange: Callable[[Tensor], Tensor]):
    """Describe an arrangement, of what another one makes of images, by running both."""
    layouts = []
    for function in (before, lambda x: arrange(before(x))):
        two = function(number(2))
        of_one = function(number(1))
        layouts.append(find_layout(of_one, two) or ImageLayout())
    shape = tuple(before(number(1)).shape)
    count = before(number(1)).numel()
    places = arrange(torch.arange(1, count + 1).view(shape)) - 1
    return Arrangement(places.numpy(), shape, layouts[0], layouts[1])


def run(arrangement: Arrangement, value: Tensor, kind: int, zero: np.generic) -> np.ndarray:
    builder = GraphBuilder()
    builder.expose(arrange_one(builder, "images", arrangement, zero, "arranged"))
    shapes = [[None] * value.dim(), [None] * arrangement.places.ndim]
    model = builder.build("g", [("images", kind, shapes[0])], [("logits", kind, shapes[1])], {})
    session = runtime.InferenceSession(model.SerializeToString())
    return session.run(None, {"images": value.numpy()})[0]


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_an_arrangement_of_images_is_what_the_function_does(name: str, type_name: str) -> None:
    arrange, (kind, element) = ARRANGEMENTS[name], TYPES[type_name]
    arrangement = describe(lambda x: x, arrange)
    for count in (1, 3):
        images = (number(count) % 256).to(kind)
        zero = images.numpy().dtype.type(0)
        found = run(arrangement, images, element, zero)
        expected = arrange(images).numpy()
        assert found.shape == expected.shape
        assert (found == expected).all()


@pytest.mark.parametrize("name", SOURCES)
def test_images_are_found_wherever_they_lie(name: str) -> None:
    before, arrange = SOURCES[name], BACK[name]
    arrangement = describe(before, arrange)
    for count in (1, 3):
        value = before(number(count)).contiguous().float()
        found = run(arrangement, value, onnx.TensorProto.FLOAT, np.float32(0))
        assert (found == arrange(value).numpy()).all()


@pytest.mark.parametrize("name", ["zeros", "zeros and crops", "diagonal matrix"])
def test_zeros_that_are_put_in_are_zero_points(name: str) -> None:
    arrange = ARRANGEMENTS[name]
    images = number(2).remainder(256).to(torch.uint8)
    arrangement = describe(lambda x: x, arrange)
    found = run(arrangement, images, onnx.TensorProto.UINT8, np.uint8(7))
    there = arrange(torch.ones_like(images)).numpy() == 1
    assert (found[~there] == 7).all()
    assert not there.all()
    assert (found[there] == arrange(images).numpy()[there]).all()


def count_operators(name: str) -> list[str]:
    builder = GraphBuilder()
    arrangement = describe(lambda x: x, ARRANGEMENTS[name])
    builder.expose(arrange_one(builder, "images", arrangement, np.float32(0), "arranged"))
    element = onnx.TensorProto.FLOAT
    after = [None] * arrangement.places.ndim
    model = builder.build("g", [("images", element, [None] * 4)], [("logits", element, after)], {})
    return [node.op_type for node in model.graph.node][:-1]


def test_simple_arrangements_are_simple_operators() -> None:
    assert count_operators("nothing") == []
    assert count_operators("flatten") == ["Reshape"]
    assert count_operators("permute") == ["Transpose"]
    assert count_operators("piece") == ["Slice"]
    assert count_operators("zeros") == ["Pad"]
    assert count_operators("flip") == ["Gather", "Gather"]
    assert count_operators("images last") == ["Transpose"]
    for name in ("channel shuffle", "pixel shuffle", "pixel unshuffle", "tokens"):
        assert set(count_operators(name)) <= {"Reshape", "Transpose"}


def test_an_operation_whose_places_are_unknown_is_refused_by_name() -> None:
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.head(net.stem(x).flatten(1)), stem=conv(3, 8), head=nn.Linear(2048, 5)
    )
    traced = trace(net.eval(), (3, 16, 16)).module
    (node,) = (node for node in traced.graph.nodes if node.target in ("flatten", torch.flatten))
    arranger = Arranger(GraphBuilder(), traced, {})
    with pytest.raises(OmpqError, match=r"^flatten \(flatten\) has no form in ONNX: where its"):
        arranger.arrange(node, ["value"], np.uint8(0))
