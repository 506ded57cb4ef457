"""One meaning for every spelling of an operation's arguments."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ompq.graph.arguments import (
    PoolingWindow,
    read_arguments,
    read_clip_bounds,
    read_dims,
    read_factor,
    read_pooling_window,
)
from ompq.graph.shapes import record_shapes

SHAPE = (6, 8, 12)
Forward = Callable[[Any, Tensor], Any]


class Held(nn.Module):
    """A forward pass and the module that it may call."""

    def __init__(self, forward: Forward, module: nn.Module) -> None:
        super().__init__()
        self.module, self._forward = module, forward
        self.register_buffer("bound", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def read(
    reader: Callable[[fx.Node, fx.GraphModule], Any],
    spelled: Forward | nn.Module,
) -> Any:
    """Read of the operation that a forward pass, or a module, does last."""
    held = (
        Held(lambda net, x: net.module(x), spelled)
        if isinstance(spelled, nn.Module)
        else Held(spelled, nn.Identity())
    )
    traced = fx.symbolic_trace(held.eval())
    record_shapes(traced, SHAPE)
    output = next(node for node in traced.graph.nodes if node.op == "output")
    return reader(output.all_input_nodes[0], traced)


@pytest.mark.parametrize(
    "spelled",
    [
        lambda s, x: torch.cat([x, x], 1),
        lambda s, x: torch.cat([x, x], dim=1),
        lambda s, x: torch.cat(tensors=[x, x], axis=1),
        lambda s, x: torch.concatenate([x, x], axis=1),
    ],
)
def test_concatenations(spelled: Forward) -> None:
    found = read(read_arguments, spelled)
    assert found.keys() == {"tensors", "dim"} and found["dim"] == 1
    assert [str(part) for part in found["tensors"]] == ["x", "x"]
    assert read(read_dims, spelled) == (1,)


@pytest.mark.parametrize(
    "spelled",
    [
        lambda s, x: x + x,
        lambda s, x: torch.add(x, other=x),
        lambda s, x: torch.add(input=x, other=x),
        lambda s, x: torch.add(x1=x, x2=x),
        lambda s, x: x.add(x),
    ],
)
def test_sums(spelled: Forward) -> None:
    found = read(read_arguments, spelled)
    assert found.keys() == {"input", "other"}
    assert found["input"] is found["other"]


@pytest.mark.parametrize(
    ("spelled", "dims"),
    [
        (lambda s, x: x.mean(3), (3,)),
        (lambda s, x: x.mean(-1), (3,)),
        (lambda s, x: torch.mean(input=x, dim=(-2, -1)), (2, 3)),
        (lambda s, x: x.mean(axis=[2, 3], keepdims=True), (2, 3)),
        (lambda s, x: x.mean(), (0, 1, 2, 3)),
        (lambda s, x: x.mean(x.dim() - 1), (3,)),
        (lambda s, x: x.amax((1,)), (1,)),
        (lambda s, x: torch.amax(x, dim=1), (1,)),
        (lambda s, x: x.softmax(-1), (3,)),
        (lambda s, x: F.max_pool2d(x, 2), (2, 3)),
        (lambda s, x: x.flatten(1), (1, 2, 3)),
        (lambda s, x: torch.flatten(x, start_dim=1, end_dim=-2), (1, 2)),
        (lambda s, x: x.transpose(dim0=1, dim1=-1), (1, 3)),
        (lambda s, x: torch.stack([x, x], axis=-1), (4,)),
        (nn.Flatten(start_dim=2), (2, 3)),
        (nn.AdaptiveAvgPool2d(1), (2, 3)),
    ],
)
def test_dimensions(spelled: Forward | nn.Module, dims: tuple[int, ...]) -> None:
    assert read(read_dims, spelled) == dims


@pytest.mark.parametrize(
    ("spelled", "bounds"),
    [
        (lambda s, x: x.relu_(), (0, inf)),
        (lambda s, x: F.relu6(x, inplace=True), (0, 6)),
        (nn.ReLU6(), (0, 6)),
        (lambda s, x: x.clamp(0, 1), (0, 1)),
        (lambda s, x: torch.clamp(x, max=2), (-inf, 2)),
        (lambda s, x: torch.clip(input=x, min=-1), (-1, inf)),
        (lambda s, x: x.clamp_min(0.5), (0.5, inf)),
        (lambda s, x: torch.clamp_max(x, max=0.5), (-inf, 0.5)),
        (lambda s, x: F.hardtanh(x), (-1, 1)),
        (lambda s, x: F.hardtanh(x, max_val=3), (-1, 3)),
        (nn.Hardtanh(-2, max_val=2.5), (-2, 2.5)),
        (lambda s, x: x.clamp(min=s.bound), None),
    ],
)
def test_bounds(spelled: Forward | nn.Module, bounds: tuple[float, float] | None) -> None:
    assert read(read_clip_bounds, spelled) == bounds


@pytest.mark.parametrize(
    ("spelled", "window"),
    [
        (lambda s, x: F.avg_pool2d(x, 2), ((2, 2), (2, 2), (0, 0))),
        (lambda s, x: F.avg_pool2d(x, x.size()[2:]), ((8, 12), (8, 12), (0, 0))),
        (lambda s, x: F.avg_pool2d(x, (x.shape[2], x.size(-1) // 2)), ((8, 6), (8, 6), (0, 0))),
        (lambda s, x: F.avg_pool2d(input=x, kernel_size=3, stride=1), ((3, 3), (1, 1), (0, 0))),
        (lambda s, x: F.avg_pool2d(x, 3, 2, 1), ((3, 3), (2, 2), (1, 1))),
        (lambda s, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), None),
        (lambda s, x: F.avg_pool2d(x, 2, divisor_override=3), None),
        (lambda s, x: F.avg_pool2d(x, 3, ceil_mode=True), None),
        (lambda s, x: F.avg_pool2d(x, 4, ceil_mode=True), ((4, 4), (4, 4), (0, 0))),
        (lambda s, x: F.adaptive_avg_pool2d(x, output_size=1), ((8, 12), (8, 12), (0, 0))),
        (lambda s, x: F.adaptive_avg_pool2d(x, 5), None),
        (lambda s, x: x.mean((2, 3), keepdim=True), ((8, 12), (8, 12), (0, 0))),
        (lambda s, x: x.mean(3), None),
        (lambda s, x: x.mean(1, keepdim=True), None),
        (nn.AdaptiveAvgPool2d((None, 4)), ((1, 3), (1, 3), (0, 0))),
        (nn.AvgPool2d((2, 3), padding=(1, 0)), ((2, 3), (2, 3), (1, 0))),
    ],
)
def test_windows(spelled: Forward | nn.Module, window: tuple | None) -> None:
    expected = None if window is None else PoolingWindow(*window)
    assert read(read_pooling_window, spelled) == expected


@pytest.mark.parametrize(
    ("spelled", "expected"),
    [
        (lambda s, x: x.permute(0, 2, 3, 1), {"dims": (0, 2, 3, 1)}),
        (lambda s, x: torch.permute(x, dims=(0, 2, 3, 1)), {"dims": (0, 2, 3, 1)}),
        (lambda s, x: x.reshape(-1, x.shape[1] * 96), {"shape": (-1, 576)}),
        (lambda s, x: torch.split(x, split_size_or_sections=2, dim=1)[0], {"index": 0}),
        (lambda s, x: F.pad(x, pad=(1, 1), value=2.0), {"pad": (1, 1), "value": 2.0}),
        (lambda s, x: F.interpolate(x, size=x.shape[2:]), {"size": (8, 12)}),
        (nn.PixelUnshuffle(2), {}),
    ],
)
def test_layouts(spelled: Forward | nn.Module, expected: dict[str, Any]) -> None:
    found = read(read_arguments, spelled)
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("spelled", "factor"),
    [
        (lambda s, x: x * 0.5, 0.5),
        (lambda s, x: torch.mul(other=0.5, input=x), 0.5),
        (lambda s, x: x.shape[1] * x, 6),
        (lambda s, x: x / 4, 0.25),
        (lambda s, x: x.div(4, rounding_mode="floor"), None),
        (lambda s, x: 4 / x, None),
        (lambda s, x: x * -1, None),
        (lambda s, x: 0 + x, 1),
        (lambda s, x: x - 0.0, 1),
        (lambda s, x: 0 - x, None),
        (lambda s, x: x + 1, None),
        (lambda s, x: x * x, None),
        (lambda s, x: x * s.bound, None),
    ],
)
def test_factors(spelled: Forward, factor: float | None) -> None:
    assert read(read_factor, spelled) == factor
