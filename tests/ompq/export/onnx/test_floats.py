"""Operations in float are in ONNX Runtime what they are in PyTorch, for any number of images."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from kinds import SHAPE, Net, conv, draw_images
from torch import Tensor, nn
from torch.nn import functional as F

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from onnx import TensorProto  # noqa: E402

from ompq.errors import OmpqError  # noqa: E402
from ompq.export.onnx import torch_exporter  # noqa: E402
from ompq.export.onnx.builder import GraphBuilder, image_shape  # noqa: E402
from ompq.export.onnx.survey import survey  # noqa: E402
from ompq.export.onnx.walker import Walker  # noqa: E402
from ompq.graph import trace  # noqa: E402

Function = Callable[[Tensor], Tensor]


def write(network: nn.Module) -> onnx.ModelProto:
    """Write a float network."""
    module = trace(network, SHAPE).module
    builder = GraphBuilder()
    with torch.inference_mode():
        builder.expose(Walker(builder, module, survey(module), "images").run(["images"]))
    given, result = ("images", TensorProto.FLOAT), ("logits", TensorProto.FLOAT)
    return builder.build("float", [(*given, image_shape(SHAPE))], [(*result, ("batch", None))], {})


def find_error(network: nn.Module) -> float:
    """Find how far ONNX Runtime is from PyTorch, for one image and for three."""
    network = network.eval()
    session = runtime.InferenceSession(write(network).SerializeToString())
    images = draw_images(3)
    largest = 0.0
    for given in (images[:1], images):
        (found,) = session.run(["logits"], {"images": given.numpy()})
        with torch.inference_mode():
            expected = network(given).numpy()
        assert found.shape == expected.shape
        largest = max(largest, float(np.abs(found - expected).max() / np.abs(expected).max()))
    return largest


def after_convolution(function: Function, **parts: nn.Module) -> nn.Module:
    """Build a network that applies a function to the features (8 × 8 × 8) of a convolution."""
    torch.manual_seed(0)

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        net.function = function
        y = function(net.stem(x)) if not parts else function(net, net.stem(x))
        return net.head(y.flatten(1)[:, :8])

    return Net(forward, stem=conv(3, 8, 2), head=nn.Linear(8, 5), **parts)


FUNCTIONS: dict[str, Function] = {
    "sigmoid": torch.sigmoid,
    "tanh": lambda x: x.tanh(),
    "exp": torch.exp,
    "log": lambda x: torch.log(x.abs() + 1),
    "sqrt": lambda x: torch.sqrt(x * x + 0.5),
    "rsqrt": lambda x: torch.rsqrt(x.square() + 0.5),
    "negative": lambda x: -x,
    "erf": torch.erf,
    "reciprocal": lambda x: torch.reciprocal(x.abs() + 1),
    "relu": F.relu,
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -0.2, 0.4),
    "clamp": lambda x: x.clamp(min=-0.3),
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "softplus": F.softplus,
    "softplus with a slope": lambda x: F.softplus(x, beta=2.0),
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, alpha=1.3),
    "leaky": lambda x: F.leaky_relu(x, 0.2),
    "softsign": F.softsign,
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: F.log_softmax(x, dim=-1),
    "numbers around": lambda x: 1 - 2 * x / 3 + 0.5,
    "number minus": lambda x: torch.rsub(x, 2.0),
    "alpha": lambda x: torch.add(x, x.tanh(), alpha=0.5),
    "floor division": lambda x: torch.div(x, 0.3, rounding_mode="floor"),
    "power": lambda x: x**2,
    "maximum": lambda x: torch.maximum(x, x.neg() * 0.3),
    "where": lambda x: torch.where(x.sigmoid() > 0.5, x, 0.1 * x),
    "matmul": lambda x: x @ x.transpose(-1, -2),
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x),
    "mean of channels": lambda x: x.mean(1),
    "mean of pixels": lambda x: x.mean((-1, -2)),
    "sum": lambda x: x.sum(dim=(2, 3), keepdim=True),
    "amax": lambda x: x.amax((2, 3)),
    "variance": lambda x: x.var(dim=1, keepdim=True) * x,
    "deviation": lambda x: x.std(dim=(2, 3), unbiased=False),
    "length": lambda x: x.norm(dim=1, keepdim=True) * x,
    "normalize": lambda x: F.normalize(x, dim=1),
    "cat": lambda x: torch.cat([x, x.tanh()], dim=1),
    "stack": lambda x: torch.stack([x, x.tanh()], dim=-1),
    "chunk": lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1],
    "roll": lambda x: torch.roll(x, (1, 2), (2, 3)),
    "zeros around": lambda x: F.pad(x, (1, 2, 0, 1)),
    "layer norm": lambda x: F.layer_norm(x, (8, 8)),
    "rms norm": lambda x: F.rms_norm(x, (8,)),
    "group norm": lambda x: F.group_norm(x, 4),
    "instance norm": lambda x: F.instance_norm(x),
    "local response norm": lambda x: F.local_response_norm(x, 3),
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "ceil pool": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "largest of a cut-off window": lambda x: F.max_pool2d(x, 3, 3, 1, 2, ceil_mode=True),
    "largest far into the padding": lambda x: F.max_pool2d(x, 2, 7, 1, 4, ceil_mode=True),
    "average pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average without zeros": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average by another divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "average of a cut-off window": lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
    "average of it with zeros": lambda x: F.avg_pool2d(x, 3, 2, (1, 0), ceil_mode=True),
    "average of it without zeros": lambda x: F.avg_pool2d(
        x, 3, 2, 1, ceil_mode=True, count_include_pad=False
    ),
    "average of a window left out": lambda x: F.avg_pool2d(x, 2, 2, 1, ceil_mode=True),
    "average of a cut-off window by a divisor": lambda x: F.avg_pool2d(
        x, 3, 2, 1, ceil_mode=True, divisor_override=4
    ),
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, (4, 2)),
    "uneven average": lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
    "adaptive maximum": lambda x: F.adaptive_max_pool2d(x, 2),
    "uneven maximum": lambda x: F.adaptive_max_pool2d(x, (3, 5)),
    "more maxima than pixels": lambda x: F.adaptive_max_pool2d(x, (12, 8)),
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0),
    "bilinear": lambda x: F.interpolate(x, size=(12, 20), mode="bilinear"),
    "corners": lambda x: F.interpolate(x, size=(12, 12), mode="bilinear", align_corners=True),
    "bicubic": lambda x: F.interpolate(x, size=(16, 16), mode="bicubic"),
    "smaller by bicubic": lambda x: F.interpolate(x, size=(5, 7), mode="bicubic"),
    "smaller by bicubic corners": lambda x: F.interpolate(
        x, size=(1, 5), mode="bicubic", align_corners=True
    ),
    "antialiased": lambda x: F.interpolate(x, size=(5, 6), mode="bilinear", antialias=True),
    "uneven scale": lambda x: F.interpolate(x, scale_factor=(1.3, 2.0), mode="bilinear"),
    "truth values as numbers": lambda x: x * (x > 0.1) + (x > 0.3),
    "how many are positive": lambda x: x * (x > 0).sum(1, keepdim=True),
    "whole numbers as numbers": lambda x: x * torch.arange(8).view(1, 8, 1, 1) / 8,
    "number per image": lambda x: x * x.mean((1, 2, 3))[:, None, None, None],
    "attention": lambda x: F.scaled_dot_product_attention(x, x.tanh(), x),
    "causal attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "attention of another scale": lambda x: F.scaled_dot_product_attention(x, x, x, scale=0.1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_compute_what_torch_does(name: str) -> None:
    assert find_error(after_convolution(FUNCTIONS[name])) < 1e-4


MODULES: dict[str, Callable[[], nn.Module]] = {
    "GELU": nn.GELU,
    "ELU": lambda: nn.ELU(0.5),
    "PReLU per channel": lambda: nn.PReLU(8, init=0.3),
    "PReLU": nn.PReLU,
    "Softmax": lambda: nn.Softmax(dim=1),
    "Hardswish": nn.Hardswish,
    "LayerNorm": lambda: nn.LayerNorm([8, 8, 8]),
    "GroupNorm": lambda: nn.GroupNorm(2, 8),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(8, affine=True),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(5),
    "BatchNorm2d without weights": lambda: nn.BatchNorm2d(8, affine=False),
    "AvgPool2d": lambda: nn.AvgPool2d(3, 2, ceil_mode=False),
    "Upsample": lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "AdaptiveAvgPool2d": lambda: nn.AdaptiveAvgPool2d(3),
    "ChannelShuffle": lambda: nn.ChannelShuffle(4),
    "Conv2d of a mode": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_compute_what_torch_does(name: str) -> None:
    network = after_convolution(lambda net, x: net.part(x.tanh()), part=MODULES[name]())
    for module in network.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.InstanceNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    assert find_error(network) < 1e-4


class ChannelsLastNorm(nn.LayerNorm):
    """A layer norm over channels, by code of its own."""

    def forward(self, input: Tensor) -> Tensor:
        x = input.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def test_a_norm_with_code_of_its_own_is_written_by_what_it_is_made_of() -> None:
    network = after_convolution(lambda net, x: net.part(x), part=ChannelsLastNorm(8))
    assert "LayerNormalization" in {node.op_type for node in write(network).graph.node}
    assert find_error(network) < 1e-4


class Transformer(nn.Module):
    """A class token, positions, and a block of attention, by torch.nn's module or by functions."""

    def __init__(self, batch_first: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 5)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 17, 16))
        self.norm, self.qkv = nn.LayerNorm(16), nn.Linear(16, 48)
        self.batch_first = batch_first
        if batch_first is not None:
            self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
            nn.init.normal_(self.attention.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        n, _, size = x.shape
        x = torch.cat([self.token.expand(n, -1, -1), x], dim=1) + self.positions
        y = self.norm(x)
        if self.batch_first is None:
            q, k, v = self.qkv(y).reshape(n, -1, 3, 4, size // 4).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, -1, size)
        elif self.batch_first:
            y, _ = self.attention(y, y, y, need_weights=False)
        else:
            y = y.transpose(0, 1)
            y = self.attention(y, y, y)[0].transpose(0, 1)
        return self.head((x + y)[:, 0])


@pytest.mark.parametrize("batch_first", [None, True, False])
def test_a_transformer_is_written_for_any_number_of_images(batch_first: bool | None) -> None:
    assert find_error(Transformer(batch_first)) < 1e-4


def test_what_nobody_can_write_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = importlib.util.find_spec

    def find(name: str, *rest: Any) -> Any:
        return None if name == "onnxscript" else real(name, *rest)

    monkeypatch.setattr(torch_exporter.importlib.util, "find_spec", find)
    with pytest.raises(OmpqError, match=r"\(cummax\) .*install onnxscript") as caught:
        write(after_convolution(lambda x: torch.cummax(x, 1)[0]))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_what_has_no_entry_is_written_by_torch() -> None:
    pytest.importorskip("onnxscript")
    assert find_error(after_convolution(lambda x: torch.cumsum(x, 1))) < 1e-4


def test_what_the_exporter_cannot_write_either_is_named_by_what_it_came_of() -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(OmpqError, match=r"fails too: .*fractional_max_pool2d") as caught:
        write(after_convolution(lambda x: F.fractional_max_pool2d(x, 2, (4, 4))))
    assert str(caught.value).isprintable()


KERNELS: dict[str, Function] = {
    "cumsum": lambda x: x.cumsum(2),
    "ones around": lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
    "prod": lambda x: (x + 1).prod(1, keepdim=True) * x,
    "logsumexp": lambda x: x - torch.logsumexp(x, 1, keepdim=True),
    "values of max": lambda x: x - x.max(1, keepdim=True).values,
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_that_nothing_is_known_of_are_left_to_the_exporter(name: str) -> None:
    pytest.importorskip("onnxscript")
    assert find_error(after_convolution(KERNELS[name])) < 1e-4
