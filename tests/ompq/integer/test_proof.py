"""What integers compute is found by running them; biases, clips and shared weights are exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from converted import build, count_equal, measure_error, train
from kinds import KINDS, Net, build_kind, conv, draw_images, pooled
from rewritten import change_file
from support import lively
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.functional import avg_pool2d, batch_norm, conv2d, dropout, normalize, relu, relu6

from ompq import artifact
from ompq.assignment import uniform
from ompq.errors import OmpqError
from ompq.graph import fold_batch_norm, trace
from ompq.integer import (
    IntegerExecution,
    IntegerNetwork,
    check_integers,
    export_integers,
    forms,
    rewrite,
    substitution,
)
from ompq.integer.fake_quantizers import FixedWeightFakeQuantizer
from ompq.integer.layers import QuantizedLayer

IMAGES = draw_images(24)


def plain(*after: str, **parts: nn.Module) -> Net:
    """Two convolutions with something between, an average and a linear layer."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = relu(net.stem(x))
        for name in after:
            x = net.get_submodule(name)(x)
        return net.head(pooled(relu(net.conv(x))))

    torch.manual_seed(0)
    return Net(forward, stem=conv(3, 8, 2), conv=conv(8, 8), head=nn.Linear(8, 5), **parts).eval()


IN_FLOAT = {
    "layer of another code": {"CentredLinear", "relu"},
    "layer with a hook": {"Conv2d", "BatchNorm2d", "relu", "mean"},
    "computed weight": {"conv2d", "relu", "mean"},
    "pruned": {"Conv2d", "relu", "mean"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_every_kind_are_exact_or_name_what_is_in_float(kind: str) -> None:
    network = build_kind(kind)
    converted = build(network, IMAGES)
    assert not converted.notes
    assert set(converted.float_operations.values()) == IN_FLOAT.get(kind, set())
    assert measure_error(converted, network, IMAGES) < 0.015
    train(converted, IMAGES)
    assert check_integers(converted) == {}
    assert count_equal(converted, IMAGES) == len(IMAGES)


@pytest.mark.parametrize("function", [torch.log, torch.rsqrt, torch.reciprocal])
def test_what_gives_no_number_for_zero_is_in_float(function: Callable[[Tensor], Tensor]) -> None:
    network = plain("keep", keep=Net(lambda net, x: function(x.abs() + 0.5)))
    converted = build(network, IMAGES)
    assert converted.float_operations.keys() == {function.__name__}
    assert not converted.notes and check_integers(converted) == {}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.cumsum(0),
        lambda x: normalize(x, dim=0),
        lambda x: x.softmax(0),
        lambda x: batch_norm(x, None, None, training=True),
    ],
)
def test_what_mixes_images_is_not_taken_for_what_it_does_to_one(
    function: Callable[[Tensor], Tensor],
) -> None:
    network = plain("mix", mix=Net(lambda net, x: function(x)))
    converted = build(network, IMAGES)
    assert len(converted.float_operations) == 1
    assert measure_error(converted, network, IMAGES) < 0.03


def test_dropout_that_is_always_active_is_in_float() -> None:
    network = plain("drop", drop=Net(lambda net, x: dropout(x, 0.3)))
    converted = build(network, IMAGES)
    assert converted.float_operations == {"dropout": "dropout"}
    assert not converted.notes and check_integers(converted) == {}


def test_a_form_that_is_wrong_is_found_and_the_operation_left_in_float(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An operation that was taken for one that hands on integers, and one that fails on them."""
    known = forms.find_form

    def claim(node: Node, module: GraphModule) -> forms.Form | None:
        name = forms.operation(node, module)
        return forms.Form.ARRANGE if name in ("hardswish", "fold") else known(node, module)

    for module in (rewrite, forms, substitution):
        monkeypatch.setattr(module, "find_form", claim)
    monkeypatch.setattr("ompq.integer.execution.find_form", claim)
    network = plain("act", act=nn.Hardswish())
    converted = build(network, IMAGES)
    assert converted.float_operations == {"act": "hardswish"}
    assert len(converted.notes) == 1 and "act (hardswish)" in converted.notes[0]
    assert count_equal(converted, IMAGES) == len(IMAGES)
    assert measure_error(converted, network, IMAGES) < 0.02


def test_arguments_that_were_misread_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    known = rewrite.read_arguments
    monkeypatch.setattr(
        rewrite, "read_arguments", lambda node, module: {**known(node, module), "dim": 2}
    )
    torch.manual_seed(0)

    def forward(net: Any, x: Tensor) -> Tensor:
        x = relu(net.stem(x))
        return net.head(torch.cat([x, relu(net.conv(x))], 3).mean(3).flatten(1))

    network = Net(forward, stem=conv(3, 8, 2), conv=conv(8, 8), head=nn.Linear(64, 5)).eval()
    converted = build(network, IMAGES)
    assert len(converted.notes) == 1 and "cat" in converted.notes[0]
    assert converted.float_operations == {"cat": "cat", "mean": "mean"}
    assert measure_error(converted, network, IMAGES) < 0.02
    assert count_equal(converted, IMAGES) == len(IMAGES)


def test_integers_that_went_wrong_are_found_when_the_file_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network = plain()
    converted = build(network, IMAGES)
    assert converted.runs_on_integers

    def fail(execution: IntegerExecution, name: str, module: nn.Module, x: Tensor) -> Tensor:
        raise ValueError(f"no run of {name}")

    monkeypatch.setattr(IntegerExecution, "_run_layer", fail)
    widths = uniform(trace(network, (3, 16, 16)).groups, 8, 8)
    artifact.save_quantized(tmp_path / artifact.FILE, converted, widths)
    assert set(converted.float_operations) == {"stem", "conv", "head"}
    read = artifact.load_quantized(tmp_path, network)
    assert isinstance(read.network, IntegerNetwork)
    assert not read.integers and not read.network.runs_on_integers


def test_a_mixed_network_is_read_back_as_it_was(tmp_path: Path) -> None:
    network = plain("up", up=nn.Upsample(scale_factor=2, mode="bilinear"))
    converted = build(network, IMAGES)
    widths = uniform(trace(network, (3, 16, 16)).groups, 8, 8)
    file = tmp_path / artifact.FILE
    artifact.save_quantized(file, converted, widths)
    read = artifact.load_quantized(file, network)
    assert isinstance(read.network, IntegerNetwork) and not read.integers
    assert read.network.float_operations == {"up": "upsample"}
    assert not read.network.runs_on_integers
    with torch.inference_mode():
        assert torch.equal(read.network.module(IMAGES), converted.module(IMAGES))
    with pytest.raises(OmpqError, match=r"upsample \(up\)"):
        export_integers(read.network)
    # Earlier files tell what was in float, but not what was left so, nor of operations.
    for key in ("left_in_float", "operations"):
        change_file(file, lambda _, description, key=key: description.pop(key))
    again = artifact.load_quantized(file, network)
    with torch.inference_mode():
        assert torch.equal(again.network.module(IMAGES), converted.module(IMAGES))


def prune(network: Net, weight: float) -> None:
    """Leave a filter with next to no weights, and with a bias that its channel lives by."""
    with torch.no_grad():
        network.stem.weight[:3] = weight * torch.randn(3, 3, 3, 3)
        network.stem.bias[:3] = torch.tensor([5.0, -3.0, 0.2])


def fix_scales(network: IntegerNetwork) -> None:
    """Fix the scales of all weights where they are, as post-training quantization does."""
    for layer in network.layers().values():
        params = layer.fake_quantizer.compute_params(layer.layer.weight)
        layer.fake_quantizer = FixedWeightFakeQuantizer(params)


@pytest.mark.parametrize("weight", [0.0, 1e-10])
@pytest.mark.parametrize("start", ["ranges", "learned", "fixed"])
def test_a_bias_always_fits_into_32_bits(start: str, weight: float) -> None:
    network = plain()
    prune(network, weight)
    converted = build(network, IMAGES, learned=start == "learned")
    if start == "fixed":
        fix_scales(converted)
    for _ in range(2):
        held = converted.layers()["stem"].compute_integers()
        assert held.bias is not None
        bias = held.bias.double() * held.scale.flatten()
        expected = converted.layers()["stem"].layer.bias.detach().double()
        torch.testing.assert_close(bias, expected, rtol=1e-6, atol=1e-4)
        assert int(held.bias.abs().max()) <= 2**30
        assert check_integers(converted) == {}
        train(converted, IMAGES)
    converted = build(network, IMAGES, learned=start == "learned")
    assert measure_error(converted, network, IMAGES) < 0.01
    assert not converted.find_clamped_biases()


def test_narrow_biases_that_are_clamped_are_named() -> None:
    network = plain()
    with torch.no_grad():
        network.stem.bias[0] = 50.0
        network.conv.bias.zero_()
        network.head.bias.zero_()
    assert build(network, IMAGES, bias_bits=8).find_clamped_biases() == ["stem"]
    assert build(network, IMAGES, bias_bits=32).find_clamped_biases() == []


def test_sums_of_many_products_stay_within_32_bits() -> None:
    layer = nn.Linear(90_000, 2, bias=True)
    with torch.no_grad():
        layer.weight.fill_(0.5)
        layer.bias.fill_(1e4)
    network = nn.Sequential(nn.Flatten(), layer)
    images = torch.rand(3, 1, 300, 300)
    converted = build(network, images)
    quantized = converted.layers()["1"]
    bound = quantized.compute_integers().bound_sums(quantized.source.largest)
    assert 2**28 < int(bound.max()) < 2**31
    assert measure_error(converted, network, images) < 0.02
    assert count_equal(converted, images) == len(images)


@pytest.mark.parametrize("bits", [8, 4])
def test_sums_that_are_clipped_and_averaged_clip_where_integers_do(bits: int) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = relu(net.stem(x))
        x = relu6(net.wide(avg_pool2d(torch.clamp(x + net.conv(x), 0, 0.37), 2)))
        x = avg_pool2d(x, 2) + avg_pool2d(net.side(x).clamp(-0.2, 0.3), 2)
        return net.head(x.mean(3).flatten(1))

    torch.manual_seed(0)
    network = Net(
        forward,
        stem=conv(3, 8, 2),
        conv=conv(8, 8),
        wide=conv(8, 8),
        side=conv(8, 8),
        head=nn.Linear(16, 5),
    ).eval()
    with torch.no_grad():
        network.wide.weight.mul_(30)
    images = torch.randn(200, 3, 16, 16)
    converted = build(network, images[:20], bits)
    assert converted.runs_on_integers
    assert count_equal(converted, images) == len(images)


@pytest.mark.parametrize("learned", [False, True])
def test_layers_that_share_a_weight_share_its_integers(learned: bool, tmp_path: Path) -> None:
    network = build_kind("tied weights")
    with torch.no_grad():  # the bias of one of them is large for their weight
        network.a.weight[0] = 1e-9
        network.b.bias[0] = 4.0
    converted = build(network, IMAGES, learned=learned)

    def compare(one: QuantizedLayer, other: QuantizedLayer) -> None:
        assert one.layer.weight is other.layer.weight
        assert one.fake_quantizer is other.fake_quantizer
        found, expected = one.quantize_weight(), other.quantize_weight()
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1].scale, expected[1].scale)

    for _ in range(2):
        compare(converted.layers()["a"], converted.layers()["b"])
        assert check_integers(converted) == {}
        train(converted, IMAGES)
    widths = uniform(trace(network, (3, 16, 16)).groups, 8, 8)
    artifact.save_quantized(tmp_path / artifact.FILE, converted, widths)
    read = artifact.load_quantized(tmp_path, network)
    with torch.inference_mode():
        expected = converted.module(IMAGES)
    assert torch.equal(IntegerExecution(read.network, read.integers).logits(IMAGES), expected)


def test_a_norm_of_another_code_keeps_its_statistics_when_told() -> None:
    converted = build(build_kind("norm of another code"), IMAGES)
    norm = converted.module.get_submodule("operations.norm.function.norm")
    assert type(norm).__name__ == "ScaledNorm"
    before = norm.running_mean.clone()
    converted.module.train()(IMAGES)
    moved = norm.running_mean.clone()
    assert not torch.equal(moved, before)
    for _ in range(3):
        converted.freeze_norms()
    hooks = [len(part._forward_pre_hooks) for part in converted.module.modules()]
    assert max(hooks) <= 1
    converted.module.train()(IMAGES)
    assert torch.equal(norm.running_mean, moved)


def test_a_layer_that_reads_two_values_and_one_of_another_layer_reads_one_scale() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = relu(net.stem(x))
        first = relu(net.a(x))
        second = relu(net.b(first))
        third = relu(net.a(second)) + relu(net.b(second))
        return net.head(pooled(relu(net.a(third)) + relu(net.b(third))))

    torch.manual_seed(0)
    network = Net(forward, stem=conv(3, 8, 2), a=conv(8, 8), b=conv(8, 8), head=nn.Linear(8, 5))
    converted = build(network.eval(), IMAGES)
    assert converted.runs_on_integers
    assert count_equal(converted, IMAGES) == len(IMAGES)
    assert measure_error(converted, network, IMAGES) < 0.02


@pytest.mark.parametrize("learned", [False, True])
def test_a_layer_that_is_called_on_several_values_has_the_range_of_all(learned: bool) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = relu(net.stem(x))
        small, large = relu(net.a(x / 8)), relu(net.a(8 * x))
        return net.head(pooled(large + small + relu(net.a(x))))

    torch.manual_seed(0)
    network = Net(forward, stem=conv(3, 8, 2), a=conv(8, 8), head=nn.Linear(8, 5)).eval()
    converted = build(network, IMAGES, learned=learned)
    assert measure_error(converted, network, IMAGES) < 0.02
    train(converted, IMAGES)
    assert count_equal(converted, IMAGES) == len(IMAGES)


def test_of_two_norms_in_a_row_the_first_alone_is_part_of_the_layer(tmp_path: Path) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(pooled(relu(net.second(net.first(net.a(relu(net.stem(x))))))))

    torch.manual_seed(0)
    norms = {"first": nn.BatchNorm2d(8), "second": nn.BatchNorm2d(8)}
    parts = {"stem": conv(3, 8, 2), "a": conv(8, 8, bias=False), "head": nn.Linear(8, 5)}
    network = lively(Net(forward, **parts, **norms))
    graph = trace(network, (3, 16, 16))
    for seen in (graph, fold_batch_norm(graph), fold_batch_norm(fold_batch_norm(graph))):
        assert seen.layers["a"].batch_norm in (None, "first")
        assert measure_error(build(seen, IMAGES), network, IMAGES) < 0.02
    converted = build(fold_batch_norm(graph), IMAGES)
    artifact.save_quantized(tmp_path / "q.safetensors", converted, uniform(graph.groups, 8))
    read = artifact.load_quantized(tmp_path / "q.safetensors", network).network.module
    assert torch.equal(read(IMAGES), converted.module(IMAGES))


class _Constants(nn.Module):
    """A network that chooses channels by a parameter of integers, and blurs by one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8, 2), nn.Linear(4, 5)
        self.chosen = nn.Parameter(torch.tensor([0, 3, 5, 6]), requires_grad=False)
        self.register_buffer("kernel", torch.full((1, 1, 3, 3), 1 / 9))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.index_select(relu(self.stem(x)), 1, self.chosen)
        return self.head(pooled(conv2d(x, self.kernel.expand(4, -1, -1, -1), groups=4)))


def test_constants_of_integers_and_of_few_values_are_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = _Constants().eval()
    converted = build(network, IMAGES)
    assert measure_error(converted, network, IMAGES) < 0.02
    train(converted, IMAGES)
    groups = trace(network, (3, 16, 16)).groups
    artifact.save_quantized(tmp_path / "q.safetensors", converted, uniform(groups, 8))
    read = artifact.load_quantized(tmp_path / "q.safetensors", network).network.module
    assert torch.equal(read(IMAGES), converted.module(IMAGES))
