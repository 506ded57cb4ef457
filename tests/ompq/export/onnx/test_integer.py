"""ONNX Runtime computes every logit of a network of integers to the bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from converted import build
from kinds import KINDS, Net, build_kind, conv, draw_images, pooled
from support import lively
from torch import Tensor, nn
from torch.nn import functional as F

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from ompq.assignment import uniform  # noqa: E402
from ompq.errors import OmpqError  # noqa: E402
from ompq.export.onnx.builder import OPSET  # noqa: E402
from ompq.export.onnx.integer import build_integer_model  # noqa: E402
from ompq.graph import trace  # noqa: E402
from ompq.integer import (  # noqa: E402
    ConversionSettings,
    IntegerExecution,
    IntegerNetwork,
    calibrate,
    convert_to_integers,
    export_integers,
)
from ompq.integer.fake_quantizers import FixedWeightFakeQuantizer  # noqa: E402
from ompq.quantizers import lp_scale  # noqa: E402

IN_FLOAT = ("layer of another code", "layer with a hook", "computed weight", "pruned")


def count_different(network: IntegerNetwork, images: Tensor) -> int:
    """Count logits that differ, of one image, of five and of all, by a single file."""
    assert network.runs_on_integers, network.float_operations
    model = build_integer_model(network)
    session = runtime.InferenceSession(model.SerializeToString())
    execution = IntegerExecution(network, export_integers(network))
    different = 0
    for count in (1, 5, len(images)):
        expected = execution.logits(images[:count]).numpy()
        (found,) = session.run(["logits"], {"images": images[:count].numpy()})
        assert (found.dtype, found.shape) == (np.float64, expected.shape)
        assert np.isfinite(expected).all()
        different += int((found != expected).sum())
    # Logits that are the same for every image would not show anything.
    assert len(np.unique(expected)) > expected.shape[1]
    return different


def settle(network: nn.Module, images: Tensor) -> nn.Module:
    """Give batch norms the statistics of the images: deep networks would forget these otherwise."""
    lively(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        network.train()(images)
    return network.eval()


def make_asymmetric(network: IntegerNetwork, bits: int, images: Tensor) -> None:
    """Give weights fixed asymmetric scales, as post-training quantization does.

    Every second channel has positive weights alone: less their zero points integers go up to
    2^bits − 1.
    """
    for layer in network.layers().values():
        weight = layer.layer.weight.data
        weight[::2] = weight[::2].abs() + 0.05 * weight.std()
        params = lp_scale(layer.fold()[0].detach(), bits, symmetric=False, per_channel=True)
        layer.fake_quantizer = FixedWeightFakeQuantizer(params)
    for requantizer in network.requantizers().values():
        requantizer.fake_quantizer.reset()
    network.module.train()
    calibrate(network, [images], torch.device("cpu"))
    network.module.eval()


def convert(network: nn.Module, images: Tensor, weight_bits: int, act_bits: int) -> IntegerNetwork:
    graph = trace(network.eval(), tuple(images.shape[1:]))
    assignment = uniform(graph.groups, weight_bits, act_bits)
    widths = assignment.layer_bits(), assignment.layer_act_bits()
    converted = convert_to_integers(graph, *widths, ConversionSettings())
    calibrate(converted, [images], torch.device("cpu"))
    converted.module.eval()
    return converted


@pytest.fixture(scope="module")
def digits() -> Tensor:
    data = pytest.importorskip("sklearn.datasets").load_digits()
    return torch.from_numpy(data.images[:200] / 8 - 1).float()[:, None]


def build_plain() -> nn.Module:
    torch.manual_seed(0)
    parts = [conv(1, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 16, 2), nn.BatchNorm2d(16)]
    rest = [nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 32), nn.ReLU()]
    return lively(nn.Sequential(*parts, *rest, nn.Linear(32, 10)))


@pytest.mark.parametrize(("weight_bits", "act_bits"), [(2, 3), (4, 4), (8, 8)])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_digits_at_every_width(
    digits: Tensor, weight_bits: int, act_bits: int, asymmetric: bool
) -> None:
    network = convert(build_plain(), digits, weight_bits, act_bits)
    if asymmetric:
        make_asymmetric(network, weight_bits, digits)
        weights = [layer.compute_integers().weight for layer in network.layers().values()]
        reach = max(int(weight.max()) for weight in weights)
        assert reach > 2 ** (weight_bits - 1), "beyond what a symmetric weight could be"
    assert count_different(network, digits) == 0


def make_net(body: Callable[[Net, Tensor], Tensor], outputs: int = 8, **parts: nn.Module) -> Net:
    """Make a network of a stem, a body that takes 8 channels of 8 × 8, and a classifier."""

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.head(body(net, F.relu(net.stem(x))).flatten(1))

    return Net(forward, stem=conv(3, 8, 2), head=nn.Linear(outputs, 5), **parts)


def pool(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1)


def shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def separable() -> dict[str, nn.Module]:
    return {
        "expand": nn.Conv2d(8, 16, 1, bias=False),
        "norm": nn.BatchNorm2d(16),
        "deep": nn.Conv2d(16, 16, 3, padding=1, groups=16),
        "project": nn.Conv2d(16, 8, 1),
    }


def run_separable(net: Net, x: Tensor) -> Tensor:
    deep = F.relu6(net.deep(F.relu6(net.norm(net.expand(x)))))
    return pool(x + net.project(deep))


class SelfPadding(nn.Conv2d):
    """A convolution that pads what it reads by itself, as TensorFlow's do."""

    def forward(self, input: Tensor) -> Tensor:
        rows, columns = (
            max((-(-size // step) - 1) * step + kernel - size, 0)
            for size, step, kernel in zip(
                input.shape[-2:], self.stride, self.kernel_size, strict=True
            )
        )
        sides = columns // 2, columns - columns // 2, rows // 2, rows - rows // 2
        padded = F.pad(input, sides)
        return F.conv2d(padded, self.weight, self.bias, self.stride)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: make_net(
        lambda net, x: pool(F.relu(x + net.b(F.relu(net.a(x))))), a=conv(8, 8), b=conv(8, 8)
    ),
    "depthwise": lambda: make_net(run_separable, **separable()),
    "groups": lambda: make_net(
        lambda net, x: pool(F.relu(net.a(x))), 16, a=nn.Conv2d(8, 16, 3, groups=2, dilation=2)
    ),
    "dense": lambda: make_net(
        lambda net, x: pool(torch.cat([x, F.relu(net.a(x)), net.b(x)], 1)),
        24,
        a=conv(8, 8),
        b=conv(8, 8),
    ),
    "stacked": lambda: make_net(
        lambda net, x: pool(torch.stack([net.a(x), F.relu(net.b(x))], -3).flatten(1, 2)),
        16,
        a=conv(8, 8),
        b=conv(8, 8),
    ),
    "channel shuffle": lambda: make_net(
        lambda net, x: pool(
            shuffle(torch.cat([x.chunk(2, 1)[0], F.relu(net.a(x.chunk(2, 1)[1]))], 1))
        ),
        a=conv(4, 4),
    ),
    "pixel shuffle": lambda: make_net(
        lambda net, x: pool(F.relu(net.a(F.pixel_unshuffle(x, 2)))), a=conv(32, 8)
    ),
    "same padding": lambda: make_net(
        lambda net, x: pool(F.relu(net.b(F.relu(net.a(x))))),
        a=nn.Conv2d(8, 8, (4, 3), padding="same"),
        b=SelfPadding(8, 8, 3, 2),
    ),
    "average pool": lambda: make_net(lambda net, x: pool(net.a(F.avg_pool2d(x, 2))), a=conv(8, 8)),
    "padded average": lambda: make_net(
        lambda net, x: pool(net.a(F.avg_pool2d(x, (3, 2), stride=2, padding=1))), a=conv(8, 8)
    ),
    "average of parts": lambda: make_net(lambda net, x: F.adaptive_avg_pool2d(x, (2, 4)), 64),
    "average of averages": lambda: make_net(lambda net, x: pool(F.avg_pool2d(x, 3, 1))),
    "sums": lambda: make_net(lambda net, x: (x * 0.25).sum((2, 3))),
    "max pool": lambda: make_net(
        lambda net, x: pool(net.a(F.max_pool2d(x, 3, 2, 1, ceil_mode=True))), a=conv(8, 8)
    ),
    "cut windows": lambda: make_net(
        lambda net, x: pool(net.a(F.max_pool2d(x, (3, 2), 3, ceil_mode=True))), a=conv(8, 8)
    ),
    "dilated max pool": lambda: make_net(
        lambda net, x: pool(net.a(F.max_pool2d(x, 2, 3, 1, 4, True))), a=conv(8, 8)
    ),
    "max pool of sums": lambda: make_net(
        lambda net, x: pool(F.max_pool2d(net.a(x) - 0.0, 3, 1, 1)), a=conv(8, 8)
    ),
    "max pool of rows": lambda: make_net(
        lambda net, x: pool(F.max_pool1d(x.flatten(2), 3, 2, 1).unflatten(2, (4, 8))),
    ),
    "uneven largest": lambda: make_net(lambda net, x: F.adaptive_max_pool2d(x, (3, 5)), 120),
    "even largest": lambda: make_net(lambda net, x: F.adaptive_max_pool2d(x, (4, 2)), 64),
    "largest and least": lambda: make_net(
        lambda net, x: torch.cat([x.amax((2, 3)), net.a(x).amin((2, 3))], 1), 16, a=conv(8, 8)
    ),
    "largest channel": lambda: make_net(
        lambda net, x: x.max(dim=1, keepdim=True)[0].flatten(1), 64
    ),
    "copies around": lambda: make_net(
        lambda net, x: pool(F.relu(net.b(F.relu(net.a(x))))),
        a=nn.Conv2d(8, 8, 3, padding=(2, 1), padding_mode="reflect"),
        b=nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
    ),
    "edges around": lambda: make_net(
        lambda net, x: pool(F.relu(net.a(x))),
        a=nn.Conv2d(8, 8, 3, stride=2, padding=1, padding_mode="replicate"),
    ),
    "zeros and crops": lambda: make_net(
        lambda net, x: pool(F.relu(net.a(F.pad(x, (1, 2, -1, 0))[:, :, 1::2]))), a=conv(8, 8)
    ),
    "clips": lambda: make_net(
        lambda net, x: pool(F.hardtanh(net.b(torch.clamp(net.a(x), -0.2, 0.4)))),
        a=conv(8, 8),
        b=conv(8, 8),
    ),
    "clips of sums": lambda: make_net(
        lambda net, x: pool(torch.clamp(x + torch.clamp(net.a(x), max=0.3), -0.1, 0.7)),
        a=conv(8, 8),
    ),
    "tokens": lambda: make_net(
        lambda net, x: net.b(F.relu(net.a(x.flatten(2).transpose(1, 2)))).mean(1),
        a=nn.Linear(8, 16),
        b=nn.Linear(16, 8),
    ),
    "all pixels": lambda: make_net(lambda net, x: net.a(x.flatten(1)).relu(), a=nn.Linear(512, 8)),
    "tiles": lambda: make_net(
        lambda net, x: pool(
            F.relu(net.a(x.unfold(2, 4, 4).permute(0, 2, 1, 4, 3).flatten(0, 1)))
        ).view(x.shape[0], -1),
        16,
        a=conv(8, 8),
    ),
    "shared by many": lambda: make_net(
        lambda net, x: pool(net.a(x) + F.max_pool2d(x, 3, 1, 1) + x), a=conv(8, 8)
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("quantize_sums", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_operations_on_integers(name: str, quantize_sums: bool) -> None:
    torch.manual_seed(0)
    network = build(lively(NETWORKS[name]()), draw_images(16), 6, quantize_sums=quantize_sums)
    assert count_different(network, draw_images(16)) == 0


@pytest.mark.parametrize("name", ["depthwise", "groups", "tokens", "copies around"])
def test_weights_of_nine_bits_are_moved_into_a_byte(name: str) -> None:
    torch.manual_seed(0)
    network = build(lively(NETWORKS[name]()), draw_images(16))
    make_asymmetric(network, 8, draw_images(16))
    for layer in network.layers().values():
        assert int(layer.compute_integers().weight.max()) > 127
    assert count_different(network, draw_images(16)) == 0


@pytest.mark.parametrize("name", KINDS)
def test_kinds_are_exact_or_refused_by_what_is_in_float(name: str) -> None:
    network = build(build_kind(name), draw_images(8))
    assert network.runs_on_integers == (name not in IN_FLOAT)
    if network.runs_on_integers:
        assert count_different(network, draw_images(8)) == 0
        return
    with pytest.raises(OmpqError, match="in float: ") as refusal:
        build_integer_model(network)
    assert "\n" not in str(refusal.value)


class Normalised(nn.Module):
    """A network that normalises its images itself, by constants of several shapes and types."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(3))
        self.register_buffer("deviation", torch.rand(3).double() + 0.5)
        self.stem, self.head = conv(3, 8, 2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = (0.7 - (x / 3.0 - self.mean.view(1, 3, 1, 1))) / self.deviation[:, None, None].float()
        x = torch.cat([x[:, 2:], x[:, :2]], dim=-3).flip(-1)
        return self.head(pooled(F.relu(self.stem(x))))


def test_images_that_the_network_normalises_become_the_same_integers() -> None:
    torch.manual_seed(0)
    network = build(Normalised(), draw_images(64))
    assert count_different(network, draw_images(64)) == 0


def test_images_that_are_changed_otherwise_are_refused() -> None:
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.head(
            pooled(F.relu(net.stem(F.interpolate(x, (9, 9), mode="bilinear"))))
        ),
        stem=conv(3, 8, 2),
        head=nn.Linear(8, 5),
    )
    with pytest.raises(OmpqError, match=r"interpolate .*changes the images"):
        build_integer_model(build(net, draw_images(8)))


def test_a_model_is_a_plain_one_that_carries_its_properties(digits: Tensor) -> None:
    network = convert(build_plain(), digits, 4, 4)
    model = build_integer_model(network, {"mean": "0.5"})
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [("mean", "0.5")]
    types = {held.data_type for held in model.graph.initializer}
    narrow = {onnx.TensorProto.DataType.Value(name) for name in ("INT4", "UINT4", "UINT2")}
    assert not types & narrow
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_param or size.dim_value for size in dimensions] == ["batch", 1, 8, 8]
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("ConvInteger") == 2
    assert operators.count("MatMulInteger") == 2
    assert not {"Conv", "MatMul", "Gemm", "AveragePool", "GlobalAveragePool"} & set(operators)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_networks_of_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    images = torch.randn(8, 3, 32, 32)
    network = convert(settle(getattr(models, name)(num_classes=10), images), images, 4, 6)
    assert count_different(network, images) == 0
