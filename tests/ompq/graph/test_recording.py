"""Networks that assign to parts of tensors, make tensors, and call compiled functions."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from kinds import Net, conv, draw_images, pooled
from torch import Tensor, nn
from torch.nn.functional import relu

from ompq.errors import OmpqError
from ompq.graph import find_image_maps, trace, trace_for
from ompq.graph.check import measure_difference
from ompq.graph.copying import copy_module

IMAGES = draw_images(4)
Logits = namedtuple("Logits", "logits auxiliary")


@torch.jit.script
def gated(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def call_helper(x: Tensor) -> Tensor:
    return gated(x)


class _Parts(nn.Module):
    """A stem, something that is done to its values, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.head = conv(3, 8, 2), conv(8, 8), nn.Linear(8, 5)
        self.cell = nn.GRU(8, 8, batch_first=True)
        self.scripted = torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)))
        self.register_buffer("grid", torch.randn(1, 8, 8, 8))
        self.register_buffer("token", torch.randn(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(pooled(relu(self.layer(self.change(relu(self.stem(x)))))))

    def change(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class _Shift(_Parts):
    def change(self, x: Tensor) -> Tensor:
        shifted = torch.zeros_like(x)
        shifted[:, :2, :-1] = x[:, :2, 1:]
        shifted[:, 2:, 1:] = x[:, 2:, :-1]
        shifted[:, 5] *= 2
        return shifted + x


class _Mask(_Parts):
    def change(self, x: Tensor) -> Tensor:
        before, x = x, x - 0.3
        x[x < 0] = 0.1
        x[..., 0] = before[..., 1]
        return x


class _BuffersOfSize(_Parts):
    def change(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :4], self.grid.expand(x.shape[0], -1, -1, -1)[:, 4:]], 1)


class _Tokens(_Parts):
    def change(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        tokens = torch.cat([self.token.repeat(n, 1, 1), x.flatten(2).transpose(1, 2)], 1)
        mixed = tokens[:, 1:] * tokens[:, :1]
        return mixed.transpose(1, 2).reshape(n, channels, height, width)


class _NewState(_Parts):
    def change(self, x: Tensor) -> Tensor:
        start = torch.zeros(1, x.shape[0], x.shape[1], device=x.device)
        found, _ = self.cell(x.flatten(2).transpose(1, 2), start)
        return found.transpose(1, 2).view_as(x)


class _Coordinates(_Parts):
    def change(self, x: Tensor) -> Tensor:
        rows = torch.linspace(-1, 1, x.shape[2], device=x.device).view(1, 1, -1, 1)
        return x + rows.expand(x.shape[0], 8, -1, x.shape[3])


class _Compiled(_Parts):
    def change(self, x: Tensor) -> Tensor:
        return self.scripted(call_helper(x)) + gated(x)


class _MadeOnTheWay(_Parts):
    def change(self, x: Tensor) -> Tensor:
        return nn.Upsample(scale_factor=2)(nn.AvgPool2d(2)(nn.Hardswish()(x)))


class _AnyArguments(_Parts):
    def forward(self, *args: Tensor, **others: Tensor) -> Tensor:
        return super().forward(*args, **others)

    def change(self, x: Tensor, **_others: Tensor) -> Tensor:
        return x


class _MoreArguments(_Parts):
    def forward(self, x: Tensor, *others: Tensor, scale: float = 2.0) -> Tensor:
        return super().forward(scale * x) * (len(others) + 1)

    def change(self, x: Tensor) -> Tensor:
        return x


class _NamedArgument(_Parts):
    def forward(self, x: Tensor, *, scale: float) -> Tensor:
        return super().forward(scale * x)


KINDS = [
    _Shift, _Mask, _BuffersOfSize, _Tokens, _NewState, _Coordinates, _Compiled, _MadeOnTheWay,
    _AnyArguments, _MoreArguments,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_traced_as_it_computes(kind: type[_Parts]) -> None:
    torch.manual_seed(0)
    network = kind().eval()
    graph = trace_for(network, IMAGES, say=pytest.fail)
    assert set(graph.layers) == {"stem", "layer", "head"}
    with torch.inference_mode():
        assert measure_difference(graph.module(IMAGES), network(IMAGES)) < 1e-6


def test_tracing_leaves_torch_and_its_users_as_they_were() -> None:
    zeros, function = torch.zeros, gated
    trace(_Compiled(), (3, 16, 16))
    assert torch.zeros is zeros and gated is function


def test_tracing_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    """Names that torch keeps for old code warn whoever asks what they are."""
    assert "reduce_op" in vars(torch.distributed)
    trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (3, 8, 8))
    assert not [str(warning.message) for warning in recwarn]


def test_images_normalised_part_by_part_stay_images() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = x.clone()
        for channel in range(3):
            x[:, channel] = (x[:, channel] - 0.1 * channel) / 0.3
        return net.head(pooled(relu(net.stem(x))))

    graph = trace(Net(forward, stem=conv(3, 8, 2), head=nn.Linear(8, 5)), (3, 16, 16))
    maps = {node.name for node in find_image_maps(graph.module)}
    (stem,) = (node for node in graph.module.graph.nodes if node.target == "stem")
    assert stem.all_input_nodes[0].name in maps


def test_a_part_that_is_changed_through_another_name_is_refused() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.stem(x)
        part = x[:, :4]
        part[:] = 0
        return net.head(pooled(x))

    network = Net(forward, stem=conv(3, 8, 2), head=nn.Linear(8, 5)).eval()
    with pytest.raises(OmpqError, match="computes something else"):
        trace_for(network, IMAGES)


def _forward_listed(net: nn.Module, x: Tensor) -> Tensor:
    return net.head(pooled(net.parts[0](net.stem(x))))


def _hide_in_list() -> nn.Module:
    network = Net(_forward_listed, stem=conv(3, 8), head=nn.Linear(8, 5))
    network.parts = [conv(8, 8)]  # type: ignore[assignment]
    return network


def _giving(give: object) -> nn.Module:
    return Net(lambda net, x: give(pooled(net.stem(x))), stem=conv(3, 8))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (_hide_in_list(), "calls a Conv2d that is none of its modules; .*nn.ModuleList"),
        (torch.jit.script(nn.Sequential(conv(3, 8))), "Sequential is TorchScript"),
        (torch.jit.trace(nn.Sequential(conv(3, 8)), IMAGES), "Sequential is TorchScript"),
        (nn.Sequential(conv(3, 8)).double(), "parameters are float64"),
        (nn.Sequential(conv(3, 8)).bfloat16(), "parameters are bfloat16"),
        (_NamedArgument(), "_NamedArgument.forward takes scale beside the images"),
        (_giving(lambda x: (x, None)), r"gives a tuple of 2 \(a tensor, None\)"),
        (_giving(lambda x: {"logits": x, "loss": x}), "gives a dictionary of logits, loss"),
        (_giving(lambda x: Logits(x, None)), "gives something else than one tensor"),
    ],
)
def test_what_is_refused_is_told_by_what_it_is(network: nn.Module, message: str) -> None:
    with pytest.raises(OmpqError, match=message):
        trace(network, (3, 16, 16))


def test_a_copy_of_a_network_with_torchscript_can_be_trained() -> None:
    copied = copy_module(_Compiled())
    assert all(parameter.is_leaf for parameter in copied.parameters())
    copied.requires_grad_(True)
    pooled(copied(IMAGES)[:, :, None, None]).sum().backward()
