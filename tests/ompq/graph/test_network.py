"""Any network as layers, groups, taps and blocks."""

from __future__ import annotations

from typing import Any

import converted
import pytest
import timm
import torch
import torchvision
from support import lively
from torch import Tensor, nn

from ompq.errors import OmpqError
from ompq.graph import fold_batch_norm, run_with_taps, trace
from ompq.zoo import load_network

BUILT = {"inception_v3": {"init_weights": False, "aux_logits": False}}

# network: (side, layers, groups, groups without stem and classifier, blocks)
EXPECTED = {
    "resnet18": (64, 21, 18, 16, 10),
    "resnet34": (64, 37, 34, 32, 18),
    "resnet50": (64, 54, 50, 48, 18),
    "resnet101": (64, 105, 101, 99, 35),
    "mobilenet_v2": (64, 53, 53, 51, 20),
    "inception_v3": (128, 95, 95, 93, 17),
    "regnet_x_400mf": (64, 72, 68, 66, 24),
    "efficientnet_lite0": (64, 50, 50, 48, 19),
    "convnext_atto": (64, 41, 41, 39, 17),
    "deit_tiny_patch16_224": (224, 50, 50, 48, 26),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if hasattr(torchvision.models, name):
        return getattr(torchvision.models, name)(num_classes=10, **BUILT.get(name, {}))
    return timm.create_model(name, num_classes=10)


@pytest.mark.parametrize("name", EXPECTED)
def test_structure_of_the_networks_of_the_field(name: str) -> None:
    side, layers, groups, body, blocks = EXPECTED[name]
    network = lively(build(name))
    graph = trace(network, (3, side, side))
    assert len(graph.layers) == layers
    assert len(graph.groups) == groups
    assert sum(group.role == "body" for group in graph.groups) == body
    assert len(graph.blocks) == blocks
    assert [layer for block in graph.blocks for layer in block.layers] == sorted(
        (node for layer in graph.layers.values() for node in layer.nodes),
        key=[node.name for node in graph.module.graph.nodes].index,
    )
    assert not {"Conv2d", "Linear"} & {why.split()[0] for why in graph.float_layers.values()}
    counted = sum(g.params + g.float_params + g.folded_params for g in graph.groups)
    assert counted == graph.parameters.total == sum(p.numel() for p in network.parameters())
    images = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        expected = network(images)
        torch.testing.assert_close(graph.module(images), expected, rtol=1e-4, atol=1e-5)
        folded = fold_batch_norm(graph)
        torch.testing.assert_close(folded.module(images), expected, rtol=1e-3, atol=1e-4)
    assert [group.params for group in folded.groups] == [group.params for group in graph.groups]
    assert not any(
        isinstance(module, nn.BatchNorm2d) for module in folded.module.modules()
    ) or name in ("deit_tiny_patch16_224", "convnext_atto")


def test_projection_shortcuts_are_tied_to_the_last_convolution_of_their_block() -> None:
    graph = trace(build("resnet50"), (3, 64, 64))
    tied = [group.layers for group in graph.groups if len(group.layers) > 1]
    assert tied == [(f"layer{i}.0.conv3", f"layer{i}.0.downsample.0") for i in (1, 2, 3, 4)]


def test_features_are_what_the_next_layer_sees() -> None:
    network = lively(build("resnet18"))
    graph = trace(network, (3, 64, 64))
    images = torch.randn(2, 3, 64, 64)
    taps = {group.name: group.tap for group in graph.groups}
    seen: dict[str, torch.Tensor] = {}
    run_with_taps(graph, images, taps.values(), lambda tap, x: seen.update({tap: x.clone()}))
    expected: dict[str, torch.Tensor] = {}
    hooks = [
        network.layer2[0].register_forward_hook(lambda m, i, o: expected.update(block=o.clone())),
        network.layer2[0].conv2.register_forward_pre_hook(
            lambda m, i: expected.update(inside=i[0].clone())
        ),
        network.maxpool.register_forward_pre_hook(lambda m, i: expected.update(stem=i[0].clone())),
    ]
    with torch.inference_mode():
        expected["logits"] = network(images)
    for hook in hooks:
        hook.remove()
    assert torch.equal(seen[taps["layer2.0.conv2"]], expected["block"])
    assert torch.equal(seen[taps["layer2.0.conv1"]], expected["inside"])
    assert torch.equal(seen[taps["conv1"]], expected["stem"])
    assert torch.equal(seen[taps["fc"]], expected["logits"])


def test_a_shortcut_that_runs_first_is_still_tied_and_ordered_by_its_block() -> None:
    class ShortcutFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.project = nn.Conv2d(4, 8, 1)
            self.first, self.second = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1)
            self.head = nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).relu()
            shortcut = self.project(x)
            x = torch.relu(self.second(torch.relu(self.first(x))) + shortcut)
            return self.head(x.mean((2, 3)))

    groups = trace(ShortcutFirst(), (3, 8, 8)).groups
    assert [g.layers for g in groups] == [
        ("stem",),
        ("first",),
        ("second", "project"),
        ("head",),
    ]
    assert [g.role for g in groups] == ["stem", "body", "body", "classifier"]


def test_costs_of_a_layer_follow_the_accounting() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1, groups=3, bias=False),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 5),
    )
    first, second = trace(network, (3, 8, 8)).layers.values()
    assert (first.weights, first.params) == (6 * 9, 6 * 9 + 12)
    assert first.macs == 54 * 16
    assert first.ops == (54 + 5 * 6) * 16
    assert second.params == 96 * 5 + 5
    assert second.ops == (2 * 96 + 1) * 5


def test_swish_written_out_is_part_of_the_feature() -> None:
    class Swish(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            return self.b(x * torch.sigmoid(x))

    graph = trace(Swish(), (3, 4, 4))
    assert graph.groups[0].tap == "mul"


def test_what_is_not_quantized_is_named() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 3, 2, 2)
            self.conv = nn.Conv2d(3, 4, 1)
            self.kernel = nn.Parameter(torch.randn(4, 4, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.conv2d(self.conv(self.up(x)), self.kernel)

    graph = trace(Mixed(), (3, 4, 4))
    assert set(graph.float_layers) == {"up", "kernel"}


def test_an_untraceable_network_names_its_line() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() > 0:  # the line that stops the tracer
                x = -x
            return self.conv(x)

    with pytest.raises(OmpqError, match=r"test_network\.py:\d+: `if x\.sum\(\) > 0:"):
        trace(Branches(), (3, 8, 8))


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (nn.Sequential(nn.ReLU()), (3, 8, 8), "nothing to quantize"),
        (nn.Sequential(nn.Conv2d(4, 4, 1)), (3, 8, 8), "cannot run on one image of 3×8×8"),
        (nn.Bilinear(2, 2, 2), (3, 8, 8), "forward takes input2 beside the images"),
    ],
)
def test_networks_that_cannot_be_used(network: nn.Module, shape, message: str) -> None:
    with pytest.raises(OmpqError, match=message):
        trace(network, shape)


def test_tracing_leaves_the_network_alone() -> None:
    network = build("efficientnet_lite0").train()
    before = [name for name, _ in network.named_modules()]
    trace(network, (3, 64, 64))
    assert network.training
    assert [name for name, _ in network.named_modules()] == before
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_features_keep_the_images_in_front() -> None:
    graph = trace(load_network("timm:deit_tiny_patch16_224").module, (3, 224, 224))
    nodes = {node.name: node for node in graph.module.graph.nodes}
    shapes = [nodes[group.tap].meta["shape"] for group in graph.groups]
    assert all(shape[0] == 1 for shape in shapes)


@pytest.mark.parametrize("given", [torch.zeros(1, 3, 8, 8), (3, 8), (1, 3, 8, 8), (3, 0, 8), 8])
def test_what_is_no_shape_of_an_image_is_refused_in_one_line(given: Any) -> None:
    with pytest.raises(OmpqError, match="give channels, height and width of one image"):
        trace(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()), given)


class _Waiting(nn.Module):
    """A convolution and its norm, with something between that hands its input on in evaluation."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.conv, self.between, self.norm = nn.Conv2d(3, 8, 3), between, nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)
        for tensor in (self.norm.running_mean, self.norm.weight.data, self.norm.bias.data):
            assert tensor is not None
            tensor.normal_()

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits."""
        x = self.norm(self.between(self.conv(x)))
        return self.head(torch.relu(x).mean((2, 3)))


def test_a_norm_behind_what_does_nothing_is_folded() -> None:
    network = _Waiting(nn.Sequential(nn.Identity(), nn.Identity())).eval()
    graph = trace(network, (3, 8, 8))
    assert graph.layers["conv"].batch_norm == "norm"
    images = torch.randn(2, 3, 8, 8)
    folded = fold_batch_norm(graph)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.module.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded.module(images), network(images))
    integers = converted.build(network, images)
    converted.train(integers, images)
    assert converted.count_equal(integers, images) == len(images)


def test_a_norm_behind_dropout_is_not_folded() -> None:
    graph = trace(_Waiting(nn.Dropout(0.1)), (3, 8, 8))
    assert graph.layers["conv"].batch_norm is None


class Masked(nn.Module):
    """Scores of positions, of which a mask takes some away in one way or another."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b, self.way = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), way
        self.register_buffer("gone", torch.arange(6) < 2)

    def forward(self, x: Tensor) -> Tensor:
        scores, others = self.a(x), self.b(x)
        if self.way == "infinite":
            masked = scores + torch.zeros(6).masked_fill(self.gone, -torch.inf)
        elif self.way == "largest":
            masked = scores + self.gone * torch.finfo(torch.float32).min
        elif self.way == "of another value":
            masked = scores + others.masked_fill(self.gone, -torch.inf)
        else:
            masked = scores + others
        return masked.softmax(-1).mean((2, 3))


@pytest.mark.parametrize("way", ["infinite", "largest", "of another value", "nothing"])
def test_features_end_before_a_mask(way: str) -> None:
    graph = trace(Masked(way).eval(), (3, 8, 8))
    features: list[Tensor] = []
    taps = [group.tap for group in graph.groups]
    run_with_taps(graph, torch.randn(2, 3, 8, 8), taps, lambda _, x: features.append(x + 0))
    assert all(bool((x * x).isfinite().all()) for x in features)
    assert (len(graph.groups) == 1) == (way == "nothing")
