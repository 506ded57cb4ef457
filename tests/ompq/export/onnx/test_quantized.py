"""The fast ONNX form runs on int8 kernels throughout, which an emulator tells to the bit."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from converted import build
from kinds import KINDS, Net, build_kind, conv, draw_images, pooled
from operating import OPERATING
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d, pad, relu

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from int8_emulator import emulate  # noqa: E402

from ompq.assignment import uniform  # noqa: E402
from ompq.export.onnx.quantized import build_quantized_model, find_uint8_weights  # noqa: E402
from ompq.graph import trace  # noqa: E402
from ompq.integer import (  # noqa: E402
    ConversionSettings,
    IntegerNetwork,
    RangeRule,
    calibrate,
    convert_to_integers,
)
from ompq.integer.fake_quantizers import FixedWeightFakeQuantizer  # noqa: E402
from ompq.integer.products import IntegerProduct  # noqa: E402
from ompq.quantizers import lp_scale  # noqa: E402


class Unit(nn.Module):
    """A convolution, a batch norm and an activation."""

    def __init__(
        self, inputs: int, outputs: int, size: int = 3, groups: int = 1, act: type = nn.ReLU
    ):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, 1, size // 2, groups=groups, bias=False)
        self.norm, self.act = nn.BatchNorm2d(outputs), act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


def build_residual() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = max_pool2d(net.stem(x), 3, 2, 1)
        x = relu(net.b(net.a(x)) + x)
        return net.head(pooled(relu(net.d(net.c(x)) + net.short(x))))

    none = nn.Identity
    return Net(
        forward,
        stem=Unit(1, 16),
        a=Unit(16, 16),
        b=Unit(16, 16, act=none),
        c=Unit(16, 24),
        d=Unit(24, 24, act=none),
        short=Unit(16, 24, 1, act=none),
        head=nn.Linear(24, 10),
    )


def build_depthwise() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = net.narrow(net.deep(net.wide(x))) + x
        return net.head(pooled(max_pool2d(net.last(x), 2)))

    clip = nn.ReLU6
    return Net(
        forward,
        stem=Unit(1, 16, act=clip),
        wide=Unit(16, 48, 1, act=clip),
        deep=Unit(48, 48, groups=48, act=clip),
        narrow=Unit(48, 16, 1, act=nn.Identity),
        last=Unit(16, 48, 1, act=clip),
        head=nn.Linear(48, 10),
    )


def build_concatenating() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = torch.cat([net.a(x), net.b(x)], dim=1)
        return net.head(pooled(net.last(torch.cat([x, net.c(max_pool2d(x, 3, 1, 1))], dim=1))))

    return Net(
        forward,
        stem=Unit(1, 12),
        a=Unit(12, 8, 1),
        b=Unit(12, 12),
        c=Unit(20, 12),
        last=Unit(32, 24),
        head=nn.Linear(24, 10),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": build_residual,
    "depthwise": build_depthwise,
    "concatenating": build_concatenating,
}


@cache
def load_images() -> tuple[Tensor, Tensor]:
    """Load handwritten digits: images of 1 × 8 × 8, and their classes."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
    return images, torch.from_numpy(digits.target)


@cache
def train(name: str) -> nn.Module:
    """Train a network on digits for a moment."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    images, labels = load_images()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for step in range(60):
        chosen = torch.randint(len(images), (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        cross_entropy(network(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return network.eval()


@cache
def convert(name: str, bits: int, act_bits: int = 8) -> IntegerNetwork:
    """Convert a trained network, its scales from digits."""
    graph = trace(train(name), (1, 8, 8))
    assignment = uniform(graph.groups, bits, act_bits)
    widths = assignment.layer_bits(), assignment.layer_act_bits()
    network = convert_to_integers(graph, *widths, ConversionSettings())
    calibrate(network, [load_images()[0][:256]], torch.device("cpu"))
    return network


def run(model: onnx.ModelProto, images: Tensor) -> np.ndarray:
    session = runtime.InferenceSession(model.SerializeToString())
    found: np.ndarray = session.run(["logits"], {"images": images.numpy()})[0]
    return found


def agree(found: np.ndarray, network: IntegerNetwork, images: Tensor) -> float:
    with torch.inference_mode():
        expected = network.module(images).numpy()
    assert found.shape == expected.shape
    return float((found.argmax(1) == expected.argmax(1)).mean())


def count_operators(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Count the operators of a model, as ONNX Runtime has fused them."""
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    runtime.InferenceSession(model.SerializeToString(), options)
    optimized = onnx.load(options.optimized_model_filepath)
    return Counter(node.op_type for node in optimized.graph.node)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("act_bits", [8, 5])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_runs_on_int8_kernels(
    name: str, act_bits: int, packed: bool, tmp_path: Path
) -> None:
    network = convert(name, 4, act_bits)
    found = count_operators(build_quantized_model(network, packed), tmp_path)
    in_integers = found["QLinearConv"] + found["QGemm"] + found["QLinearMatMul"]
    assert in_integers == len(network.layers())
    assert not found.keys() & {"Conv", "FusedConv", "Gemm", "MatMul", "FusedGemm", "FusedMatMul"}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["attention", "attention by einsum", "class token"])
def test_products_of_attention_run_on_int8_kernels(name: str, bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build(OPERATING[name](), draw_images(8), bits)
    products = [x for x in network.operations().values() if isinstance(x, IntegerProduct)]
    found = count_operators(build_quantized_model(network), tmp_path)
    layers = found["QLinearConv"] + found["QGemm"]
    # The scores are handed to a softmax in float, so that kernel gives floats.
    in_integers = found["QLinearMatMul"] + found["MatMulIntegerToFloat"]
    assert layers + in_integers == len(network.layers()) + len(products)
    assert not found.keys() & {"Conv", "Gemm", "MatMul", "FusedMatMul", "Einsum"}


@pytest.mark.parametrize(("bits", "act_bits"), [*((bits, 8) for bits in range(2, 9)), (4, 5)])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_tells_the_classes_that_the_integer_network_tells(
    name: str, bits: int, act_bits: int
) -> None:
    images = load_images()[0][:600]
    network = convert(name, bits, act_bits)
    assert agree(run(build_quantized_model(network), images), network, images) >= 0.99


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_packed_file_gives_the_outputs_of_the_plain_one(bits: int) -> None:
    images = load_images()[0][:200]
    for name in NETWORKS:
        network = convert(name, bits)
        plain, packed = (build_quantized_model(network, packed) for packed in (False, True))
        assert (run(plain, images) == run(packed, images)).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_packed_file_holds_the_weights_in_as_many_bits_as_promised(bits: int) -> None:
    network = convert("concatenating", bits)
    size = len(build_quantized_model(network, packed=True).SerializeToString())
    weights = sum(-(-x.layer.weight.numel() * bits // 8) for x in network.layers().values())
    channels = sum(len(x.layer.weight) for x in network.layers().values())
    assert size <= weights + 9 * channels + 1500 * len(network.layers())


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3, 5])
def test_the_whole_file_of_a_resnet_is_as_small_as_promised(bits: int) -> None:
    models = pytest.importorskip("torchvision.models")
    graph = trace(models.resnet18(num_classes=10), (3, 32, 32))
    assignment = uniform(graph.groups, bits, 8)
    widths = assignment.layer_bits(), assignment.layer_act_bits()
    network = convert_to_integers(graph, *widths, ConversionSettings())
    calibrate(network, [torch.randn(4, 3, 32, 32)], torch.device("cpu"))
    size = len(build_quantized_model(network, packed=True).SerializeToString())
    assert size <= 1.02 * assignment.size_mb * 2**20


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"),
    reason="what is emulated are the kernels of x86 processors",
)
@pytest.mark.parametrize(("bits", "act_bits"), [(8, 8), (7, 6), (3, 4)])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_runtime_computes_what_an_emulator_of_its_kernels_does(
    name: str, bits: int, act_bits: int
) -> None:
    images = load_images()[0][:400]
    model = build_quantized_model(convert(name, bits, act_bits))
    assert (run(model, images) == emulate(model, images.numpy())).all()


@pytest.mark.parametrize("name", KINDS)
def test_networks_of_every_kind_are_written_for_any_number_of_images(name: str) -> None:
    images = draw_images(6)
    network = build(build_kind(name), images)
    session = runtime.InferenceSession(build_quantized_model(network).SerializeToString())
    with torch.inference_mode():
        expected = network.module(images).numpy()
    for count in (1, 5):
        (found,) = session.run(["logits"], {"images": images[:count].numpy()})
        assert found.shape == expected[:count].shape
        assert np.abs(found - expected[:count]).max() < 0.02 * expected.std()


def test_narrow_activations_are_clipped_in_integers() -> None:
    model = build_quantized_model(convert("depthwise", 4, 6))
    made = {node.output[0]: node.op_type for node in model.graph.node}
    clips = [node for node in model.graph.node if node.op_type == "Clip"]
    # ReLU6 is within them: nothing is clipped in float.
    assert clips
    assert all(made[node.input[0]] == "QuantizeLinear" for node in clips)
    assert "Relu" not in made.values()


def test_a_clip_below_the_range_is_within_the_integers() -> None:
    images = draw_images(32)

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.head(pooled(net.a(net.stem(x).clamp(0, 0.5))))

    network = build(Net(forward, stem=conv(3, 8), a=conv(8, 8), head=nn.Linear(8, 5)), images)
    requantizer = next(each for each in network.requantizers().values() if each.clip)
    requantizer.fake_quantizer.scale.fill_(0.01)
    network.module.train().eval()
    model = build_quantized_model(network)
    with torch.inference_mode():
        expected = network.module(images).numpy()
    assert np.abs(run(model, images) - expected).max() < 0.02 * np.abs(expected).max()
    assert "Clip" in {node.op_type for node in model.graph.node}


def test_zeros_around_an_image_become_those_of_the_convolution() -> None:
    images = draw_images(16)

    def forward(net: Net, x: Tensor) -> Tensor:
        x = relu(net.stem(pad(x, (0, 1, 0, 1))))
        return net.head(pooled(net.a(pad(x, (2, 1, 1, 0)))))

    parts = {"stem": nn.Conv2d(3, 8, 3, 2), "a": nn.Conv2d(8, 8, 3, padding=1)}
    network = build(Net(forward, **parts, head=nn.Linear(8, 5)), images)
    model = build_quantized_model(network)
    assert "Pad" not in {node.op_type for node in model.graph.node}
    with torch.inference_mode():
        expected = network.module(images).numpy()
    assert np.abs(run(model, images) - expected).max() < 0.02 * expected.std()


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_convolutions_pad_by_copies_of_values(mode: str) -> None:
    images = draw_images(8)

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.head(pooled(relu(net.a(relu(net.stem(x))))))

    padded = nn.Conv2d(8, 8, 3, padding=(1, 2), padding_mode=mode)
    network = build(Net(forward, stem=conv(3, 8), a=padded, head=nn.Linear(8, 5)), images)
    with torch.inference_mode():
        expected = network.module(images).numpy()
    found = run(build_quantized_model(network), images)
    assert np.abs(found - expected).max() < 0.02 * expected.std()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [8, 7, 4])
def test_asymmetric_weights_are_right(bits: int, per_channel: bool, packed: bool) -> None:
    images = load_images()[0][:600]
    graph = trace(train("residual"), (1, 8, 8))
    assignment = uniform(graph.groups, bits, 8)
    widths = assignment.layer_bits(), assignment.layer_act_bits()
    network = convert_to_integers(graph, *widths, ConversionSettings())
    for layer in network.layers().values():
        weight = layer.fold()[0].detach().abs()  # all on one side of zero
        weight -= 0.2 * weight.amax()
        layer.layer.weight.data, layer.norm = weight, None
        params = lp_scale(weight, bits, symmetric=False, per_channel=per_channel)
        layer.fake_quantizer = FixedWeightFakeQuantizer(params)
    calibrate(network, [images[:256]], torch.device("cpu"))
    model = build_quantized_model(network, packed)
    assert bool(find_uint8_weights(network)) == (bits == 8)
    assert agree(run(model, images), network, images) >= 0.99
    if not packed:
        assert (run(model, images[:100]) == emulate(model, images[:100].numpy())).all()


def test_one_scale_for_a_whole_weight_is_written_too() -> None:
    images = draw_images(16)
    network = build(build_kind("tied weights"), images, 5, rule=RangeRule(per_channel=False))
    with torch.inference_mode():
        expected = network.module(images).numpy()
    for packed in (False, True):
        found = run(build_quantized_model(network, packed), images)
        assert np.abs(found - expected).max() < 0.02 * expected.std()


def test_biases_in_float_are_written_too() -> None:
    images = draw_images(16)
    network = build(build_kind("convolutional"), images, bias_bits=0)
    with torch.inference_mode():
        expected = network.module(images).numpy()
    found = run(build_quantized_model(network), images)
    assert np.abs(found - expected).max() < 0.05 * expected.std()


def test_openvino_runs_the_file() -> None:
    openvino = pytest.importorskip("openvino")
    images = load_images()[0][:500]
    for name in NETWORKS:
        network = convert(name, 4, 6)
        model = build_quantized_model(network).SerializeToString()
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(model), "CPU")
        found = compiled({"images": images.numpy()})[compiled.output(0)]
        assert agree(found, network, images) >= 0.99


@pytest.mark.parametrize("packed", [False, True])
def test_metadata_and_the_names_of_input_and_output_are_in_the_file(packed: bool) -> None:
    model = build_quantized_model(convert("residual", 4), packed, {"classes": "ten"})
    onnx.checker.check_model(model, full_check=True)
    assert {prop.key: prop.value for prop in model.metadata_props} == {"classes": "ten"}
    assert [value.name for value in model.graph.input] == ["images"]
    assert [value.name for value in model.graph.output] == ["logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
