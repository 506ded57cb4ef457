"""Operations in all their spellings: integers equal the simulation, or the float rest is named."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from converted import build, count_equal, measure_error, train
from torch import Tensor, nn
from torch.nn import functional as F

from ompq.integer import check_integers

SIDE = 16
IMAGES = torch.randn(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
Operation = Callable[[Any, Tensor, Tensor], Tensor]


class Spelled(nn.Module):
    """Two convolutions, operations on what they give (n × 8 × 8 × 8), and a linear layer on all."""

    def __init__(self, spelled: Iterable[Operation], **parts: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        for name, part in parts.items():
            self.add_module(name, part)
        self.register_buffer("small", torch.tensor(0.03))
        self.gain = nn.Parameter(torch.rand(8) + 0.5)
        self.register_buffer("order", torch.tensor([3, 1, 2]))
        self.spelled = tuple(spelled)
        with torch.no_grad():
            size = self.eval().compute_features(IMAGES[:2]).shape[1]
        self.head = nn.Linear(size, 5)

    def compute_features(self, x: Tensor) -> Tensor:
        a = F.relu(self.stem(x))
        b = F.relu(self.conv(a))
        return torch.cat([apply(self, a, b).flatten(1) for apply in self.spelled], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.compute_features(x))


# Computed with integers alone.
EXACT: dict[str, Operation] = {
    "mean(3)": lambda s, a, b: b.mean(3),
    "mean(dim=-1)": lambda s, a, b: torch.mean(input=b, dim=-1),
    "mean(axis, keepdims)": lambda s, a, b: b.mean(axis=(2, 3), keepdims=True),
    "mean over channels": lambda s, a, b: s.conv(b).mean(1),
    "mean over most": lambda s, a, b: b.mean((1, 2), dtype=torch.float32),
    "avg_pool2d of its size": lambda s, a, b: F.avg_pool2d(b, b.size()[2:]),
    "avg_pool2d of half its size": lambda s, a, b: F.avg_pool2d(b, kernel_size=b.shape[-1] // 2),
    "avg_pool2d padded": lambda s, a, b: F.avg_pool2d(b, 3, 2, 1),
    "avg_pool2d, ceil_mode for nothing": lambda s, a, b: F.avg_pool2d(b, 2, ceil_mode=True),
    "adaptive_avg_pool2d of None": lambda s, a, b: F.adaptive_avg_pool2d(b, output_size=(None, 2)),
    "amax over pixels": lambda s, a, b: s.conv(b).amax((2, 3)),
    "amax over channels": lambda s, a, b: s.conv(b).amax(axis=1, keepdims=True),
    "max of a dimension": lambda s, a, b: torch.max(s.conv(b), dim=2).values,
    "max of channels": lambda s, a, b: b.max(1)[0],
    "max_pool2d of its size": lambda s, a, b: F.max_pool2d(b, b.size()[2:]),
    "adaptive_max_pool2d": lambda s, a, b: F.adaptive_max_pool2d(s.conv(b), (2, None)),
    "cat(axis)": lambda s, a, b: torch.cat([a, b], axis=1),
    "cat(tensors, dim)": lambda s, a, b: torch.cat(tensors=[a, b], dim=-3),
    "cat of images": lambda s, a, b: torch.cat([a, b]).reshape(2, -1, 8, 8, 8)[1],
    "concat": lambda s, a, b: torch.concat((b, a), 1),
    "concatenate": lambda s, a, b: torch.concatenate((b, a), axis=2),
    "stack": lambda s, a, b: torch.stack((a, b), axis=1).mean((3, 4)),
    "cat of pieces": lambda s, a, b: torch.cat(b.chunk(2, 1)[::-1], 1),
    "add(other)": lambda s, a, b: torch.add(a, other=b),
    "add(input, other, alpha=1)": lambda s, a, b: torch.add(input=a, other=b, alpha=1),
    "iadd": lambda s, a, b: operator.iadd(b.clone(), a),
    "add_": lambda s, a, b: b.clone().add_(a),
    "add to itself": lambda s, a, b: b + b,
    "add one value per channel": lambda s, a, b: a + b.mean((2, 3), keepdim=True),
    "sum of a list": lambda s, a, b: sum([a, b]),
    "a factor": lambda s, a, b: 0.3 * s.conv(b) + b / b.shape[1],
    "sum over pixels": lambda s, a, b: torch.sum(b, dim=(2, 3)) * 0.01 + b.mul(2).mean((2, 3)),
    "clamp(min, max)": lambda s, a, b: torch.clamp(input=s.conv(b), min=-0.03, max=0.07).mean(3),
    "clip(max)": lambda s, a, b: s.conv(b).clip(max=0.05).mean((2, 3)),
    "clamp_max_": lambda s, a, b: s.conv(b).clamp_max_(0.1).mean(2),
    "hardtanh": lambda s, a, b: F.hardtanh(s.conv(b), max_val=0.06, min_val=-0.1).mean(3),
    "relu6(inplace)": lambda s, a, b: F.relu6(s.conv(b), inplace=True),
    "relu_": lambda s, a, b: s.conv(b).relu_().mean(2),
    "clipped sums": lambda s, a, b: F.avg_pool2d(torch.clamp(a + b, 0, 0.33), 2).mean((2, 3)),
    "permute(dims)": lambda s, a, b: s.conv(b).permute(dims=(0, 2, 3, 1)),
    "transpose(dim0, dim1)": lambda s, a, b: torch.transpose(b, dim0=1, dim1=-1),
    "reshape(shape)": lambda s, a, b: torch.reshape(b, shape=(-1, 8, 64)).mean(2),
    "flatten(start_dim, end_dim)": lambda s, a, b: torch.flatten(b, start_dim=2, end_dim=-1),
    "slices": lambda s, a, b: s.conv(b)[:, ::2, 1:],
    "indices": lambda s, a, b: b[:, s.order],
    "pieces of a split": lambda s, a, b: b.split(4, 1)[0] + torch.split(b, 4, dim=1)[1],
    "pieces of sizes": lambda s, a, b: torch.split(b, split_size_or_sections=[2, 6], dim=1)[1],
    "pad": lambda s, a, b: F.pad(b, (1, 1, 1, 1)),
    "pad(mode)": lambda s, a, b: F.pad(b, pad=(1, 1, 1, 1), mode="reflect"),
    "pixel_shuffle": lambda s, a, b: F.pixel_shuffle(s.conv(b), 2),
    "interpolate(nearest)": lambda s, a, b: F.interpolate(b, scale_factor=2),
    "to(a weight's type)": lambda s, a, b: b.to(s.conv.weight.dtype).mean(3),
    "type_as": lambda s, a, b: b.type_as(a) + a,
    "contiguous view": lambda s, a, b: b.permute(0, 2, 3, 1).contiguous().view(b.size(0), -1),
    "layer(input)": lambda s, a, b: s.conv(input=a).mean(2),
    "a difference": lambda s, a, b: s.conv(b) - a,
    "a difference in place": lambda s, a, b: torch.relu(b).sub_(other=a),
    "rms_norm(a shape)": lambda s, a, b: F.rms_norm(b, s.gain.shape, s.gain),
    "expand_as": lambda s, a, b: b.amax((2, 3), keepdim=True).expand_as(a) * a,
    "reshape_as(other)": lambda s, a, b: s.conv(a.flatten(1).reshape_as(other=b)),
    "view_as": lambda s, a, b: b.flatten(1).view_as(a).mean(2),
    "a number": lambda s, a, b: b + 0.5,
    "a buffer": lambda s, a, b: b + s.small,
    "a negative factor": lambda s, a, b: b * -0.3,
    "a product": lambda s, a, b: b * a,
    "a product that broadcasts": lambda s, a, b: torch.mul(b.amax((2, 3), keepdim=True), other=a),
    "a bound that is a tensor": lambda s, a, b: s.conv(b).clamp(min=s.small),
    "a square": lambda s, a, b: b * b,
    "gelu": lambda s, a, b: F.gelu(s.conv(F.gelu(b) + b)),
    "a gate": lambda s, a, b: torch.sigmoid(s.conv(b)) * a.square(),
    "a reversed difference": lambda s, a, b: 1 - torch.tanh(b),
    "padding left out": lambda s, a, b: F.avg_pool2d(b, 3, 2, 1, count_include_pad=False),
    "dropout(training=False)": lambda s, a, b: F.dropout(b, 0.5, training=False),
}
# With what has no exact form, by the operations in float.
MIXED: dict[str, tuple[Operation, str]] = {
    "windows cut off": (lambda s, a, b: F.avg_pool2d(b, 3, 2, ceil_mode=True), "avg_pool2d"),
    "another divisor": (lambda s, a, b: F.avg_pool2d(b, 2, divisor_override=3), "avg_pool2d"),
    "windows of two sizes": (lambda s, a, b: F.adaptive_avg_pool2d(b, 3), "adaptive_avg_pool2d"),
    "mean over images": (lambda s, a, b: b - b.mean(0, keepdim=True), "mean neg add"),
    "mean over all": (lambda s, a, b: b - b.mean(), "mean neg add"),
    "alpha": (lambda s, a, b: torch.add(a, b, alpha=2), "add"),
    "padding with another value": (lambda s, a, b: F.pad(b, (1, 1), value=0.5), "pad"),
    "half": (lambda s, a, b: b.half().float().mean(3), "half float mean"),
    "a place": (lambda s, a, b: b.mean(3) + b.max(1)[1].sum((1, 2))[:, None, None] * 0.0,
                "max getitem sum getitem mul add"),
    "the larger one": (lambda s, a, b: torch.max(a, b), "max"),
    "a weight of a layer": (lambda s, a, b: F.conv2d(b, s.conv.weight), "conv2d"),
    "a running sum": (lambda s, a, b: s.conv(b.cumsum(1) + b), "cumsum add"),
}  # fmt: skip


def chain(*paths: str) -> Operation:
    """Apply modules to the second convolution's outputs, one after the other."""

    def apply(net: Any, a: Tensor, b: Tensor) -> Tensor:
        for path in paths:
            b = net.get_submodule(path)(b)
        return b

    return apply


MODULES: list[tuple[list[nn.Module], str]] = [
    ([nn.ReLU6(inplace=True), nn.AdaptiveAvgPool2d((4, None)), nn.AvgPool2d(2)], ""),
    ([nn.Conv2d(8, 8, 1), nn.Hardtanh(-0.1, max_val=0.04), nn.AvgPool2d(2)], ""),
    ([nn.Conv2d(8, 8, 1), nn.MaxPool2d(2, 1), nn.AdaptiveMaxPool2d(2)], ""),
    ([nn.Conv2d(8, 8, 1), nn.PixelShuffle(2), nn.ZeroPad2d(1), nn.Flatten(2)], ""),
    ([nn.Linear(8, 6), nn.MaxPool2d(2), nn.Flatten(2), nn.Linear(12, 3)], ""),
    ([nn.Conv2d(8, 6, 4, padding="same", padding_mode="circular", groups=2)], ""),
    ([nn.BatchNorm2d(8), nn.ReLU()], ""),
    ([nn.Conv2d(8, 4, 1), nn.PReLU(4), nn.Hardswish(), nn.AvgPool2d(2)], ""),
    ([nn.Conv2d(8, 4, 1), nn.SiLU(inplace=True), nn.BatchNorm2d(4), nn.ELU(0.5)], ""),
    ([nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(4, 2, 3)], "ConvTranspose2d"),
    ([nn.Conv2d(8, 4, 1), nn.PReLU()], ""),
]


def group(names: Iterable[str], size: int) -> list[list[str]]:
    """Take operations together, for fewer networks."""
    names = list(names)
    return [names[start : start + size] for start in range(0, len(names), size)]


def check(network: nn.Module, in_float: Iterable[str], bits: int) -> None:
    torch.manual_seed(0)
    converted = build(network, IMAGES, bits, learned=bits == 4)
    found = Counter(converted.float_operations.values())
    # The concatenation of all can only be one of integers where all are.
    behind = {"cat", "flatten"} if in_float else set()
    assert Counter({k: n for k, n in found.items() if k not in behind}) == Counter(in_float)
    assert not converted.notes
    assert count_equal(converted, IMAGES) == len(IMAGES)
    if bits == 8:
        assert measure_error(converted, network, IMAGES) < 0.04
    train(converted, IMAGES)
    assert check_integers(converted) == {}
    assert count_equal(converted, IMAGES) == len(IMAGES)
    assert converted.runs_on_integers == (not in_float)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("names", group(EXACT, 9), ids="; ".join)
def test_what_chooses_arranges_or_averages_runs_on_integers(names: list[str], bits: int) -> None:
    check(Spelled(EXACT[name] for name in names), [], bits)


@pytest.mark.parametrize("names", group(MIXED, 5), ids="; ".join)
def test_what_has_no_exact_form_is_named_and_the_rest_runs_on_integers(names: list[str]) -> None:
    in_float = [what for name in names for what in MIXED[name][1].split()]
    check(Spelled(MIXED[name][0] for name in names), in_float, 8)


@pytest.mark.parametrize("bits", [8, 4])
def test_modules_are_read_as_functions_are(bits: int) -> None:
    named = {
        f"part{row}_{place}": module
        for row, (modules, _) in enumerate(MODULES)
        for place, module in enumerate(modules)
    }
    chains = [
        chain(*(f"part{row}_{place}" for place in range(len(modules))))
        for row, (modules, _) in enumerate(MODULES)
    ]
    check(Spelled(chains, **named), " ".join(what for _, what in MODULES).split(), bits)
