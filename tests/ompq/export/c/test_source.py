"""C that a compiler has made to run, against the integers that it must compute."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from compiled import COMPILER, Compiled, quantize, run_under_sanitizer
from converted import build
from kinds import KINDS, Net, build_kind, conv, draw_images, pooled
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, avg_pool2d, max_pool1d, max_pool2d, pad, relu

from ompq.errors import OmpqError
from ompq.export.c.source import CSource, write_c
from ompq.integer import (
    IntegerExecution,
    IntegerNetwork,
    RangeRule,
    export_integers,
)
from ompq.integer.fake_quantizers import FixedWeightFakeQuantizer
from ompq.quantizers import QuantParams

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler `cc`")


def expect(network: IntegerNetwork, images: Tensor) -> Tensor:
    execution = IntegerExecution(network, export_integers(network))
    return execution.logits(images).flatten(1)


def check(network: IntegerNetwork, images: Tensor, folder: Path) -> CSource:
    """Compare every logit of a network in C with its integers'."""
    source = write_c(network, images)
    found = Compiled(source, folder).run()
    expected = expect(network, images)
    assert expected.unique().numel() > 2
    assert torch.equal(found, expected)
    return source


@pytest.fixture(scope="module")
def digits() -> Tensor:
    images = torch.from_numpy(load_digits().images[:40]).float().unsqueeze(1)
    return (images - 4.9) / 6


def plain(bits: int) -> nn.Module:
    torch.manual_seed(bits)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Flatten(), nn.Linear(192, 10),
    )  # fmt: skip


@pytest.mark.parametrize("bits", [2, 4])
def test_logits_of_digits(bits: int, digits: Tensor, tmp_path: Path) -> None:
    network = quantize(plain(bits), digits, bits, 3)
    source = check(network, digits, tmp_path)
    weights = 9 * 8 + 9 * 8 * 12 + 192 * 10
    # Ends have 8 bits, the middle has the bits given.
    packed = 72 + 864 * bits // 8 + 1920
    assert packed < source.flash_bytes < packed + 16 * (8 + 12 + 10) + 64
    assert source.flash_bytes < weights or bits == 4


class Residual(nn.Module):
    """A sum with a shortcut as it is, and one with a shortcut of its own convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 8), conv(8, 8), conv(8, 8)
        self.c, self.d, self.side = conv(8, 12, 2), conv(12, 12), nn.Conv2d(8, 12, 1, 2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(k) for k in (8, 8, 12, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.stem(x))
        x = relu(x + self.norms[1](self.b(relu(self.norms[0](self.a(x))))))
        y = self.norms[2](self.d(relu(self.c(x))))
        return self.head(pooled(relu(y + self.norms[3](self.side(x)))))


class Separable(nn.Module):
    """Depthwise convolutions with padding that is the same on no two sides, and ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, bias=False)
        self.deep = nn.Conv2d(8, 8, 5, 2, groups=8, bias=False)
        self.point = nn.Conv2d(8, 16, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(k) for k in (8, 8, 16))
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.norms[0](self.stem(pad(x, (0, 1, 0, 1)))))
        x = nn.functional.relu6(self.norms[1](self.deep(pad(x, (1, 2, 1, 2)))))
        x = nn.functional.relu6(self.norms[2](self.point(x)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1)).flatten(1)


class Enlarged(nn.Module):
    """A concatenation of maps with smaller ones that are enlarged, as in a U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, 2, 1)
        self.joined, self.head = nn.Conv2d(20, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.stem(x))
        up = nn.functional.interpolate(relu(self.down(x)), scale_factor=2.0)
        return self.head(pooled(relu(self.joined(torch.cat([x, up], 1)))))


def test_enlarged_maps_take_no_large_tables(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 3, 16, 16)
    network = build(Enlarged(), images)
    source = check(network, images, tmp_path)
    weights = 3 * 8 * 9 + 8 * 12 * 9 + 20 * 8 * 9 + 8 * 5
    assert source.flash_bytes < 1.5 * weights


class Dense(nn.Module):
    """Concatenations of concatenations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 8, 2), conv(8, 4), conv(12, 4)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.stem(x))
        x = torch.cat([x, relu(self.norm(self.a(x)))], 1)
        x = torch.cat([x, relu(self.b(avg_pool2d(x, 3, 1, 1)))], 1)
        return self.head(pooled(x))


class Shuffled(nn.Module):
    """Halves of channels that are shuffled, as in ShuffleNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 8, 2), conv(4, 4), conv(4, 4)
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.stem(x))
        for layer in (self.a, self.b):
            left, right = x.chunk(2, dim=1)
            x = torch.cat([left, relu(layer(right))], dim=1)
            x = x.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8)
        return self.head(pooled(relu(self.grouped(x))))


def choosing(net: nn.Module, x: Tensor) -> Tensor:
    """Choose and average in all the ways that have windows."""
    x = net.stem(x)
    x = max_pool2d(x, 3, 2, 1, ceil_mode=True)
    a = relu(net.a(x))
    parts = [
        adaptive_max_pool2d(a, (3, 2)),
        max_pool2d(a, (2, 3), (1, 2), (1, 1), (2, 1))[:, :, :3, :2],
        avg_pool2d(a, (3, 2), 2, (1, 0))[:, :, :3, :2],
    ]
    rows = [a.amax((2, 3)), a.amin(1).flatten(1), max_pool1d(a.flatten(2), 3, 2, 1).amax(2)]
    return net.head(torch.cat([*(part.flatten(1) for part in parts), *rows], 1))


def build_choosing() -> nn.Module:
    pooled_size, side = 3 * 8 * 3 * 2, 5
    return Net(
        choosing, stem=conv(3, 8, 2), a=conv(8, 8), head=nn.Linear(pooled_size + 16 + side**2, 5)
    )


def interleaving(net: nn.Module, x: Tensor) -> Tensor:
    """Take padded maps for maps of another width, which no loops of copies can follow."""
    x = pad(relu(net.stem(x)), (0, 1, 0, 1)).reshape(-1, 8, 27, 3)
    return net.head(pooled(relu(net.a(x))))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "separable": Separable,
    "dense": Dense,
    "shuffled": Shuffled,
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 5)),
    "choosing": build_choosing,
    "interleaving": lambda: Net(
        interleaving, stem=conv(3, 8, 2), a=conv(8, 8), head=nn.Linear(8, 5)
    ),
    "circular": lambda: nn.Sequential(
        nn.Conv2d(3, 4, (3, 4), padding="same", padding_mode="circular"), nn.ReLU(),
        nn.Conv2d(4, 6, 3, (2, 1), padding=(0, 2), dilation=(1, 2)), nn.PixelShuffle(1),
        nn.ReLU(), nn.Flatten(2), nn.Linear(112, 4), nn.Flatten(), nn.Linear(24, 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_of_networks(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    check(quantize(NETWORKS[name](), draw_images(8), 4, 6), draw_images(8), tmp_path)


@pytest.mark.parametrize("name", KINDS)
def test_networks_of_kinds_are_exact_or_refused_by_what_stops_them(
    name: str, tmp_path: Path
) -> None:
    network = build(build_kind(name), draw_images(4))
    if network.runs_on_integers:
        check(network, draw_images(4), tmp_path)
        return
    with pytest.raises(OmpqError) as refusal:
        write_c(network, draw_images(1))
    for what in set(network.float_operations.values()) - {"cat", "flatten", "getitem", "view"}:
        assert f" {what} (" in str(refusal.value)


def plain_of_three() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1), nn.Flatten(), nn.Linear(128, 5)
    )


def test_asymmetric_weights_and_activations_of_eight_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = draw_images(6) + 0.7
    network = quantize(plain_of_three(), images, 8, 8, RangeRule(asymmetric=True))
    for layer in network.layers().values():
        least, largest = torch.aminmax(layer.layer.weight.detach().flatten(1) + 0.1, dim=1)
        scale = (largest - least) / 255
        zero_point = torch.randint(-128, 128, scale.shape, dtype=torch.int32)
        params = QuantParams(scale, zero_point, -128, 127)
        layer.fake_quantizer = FixedWeightFakeQuantizer(params)
        layer.eval()
    widest = max(int(layer.compute_integers().weight.max()) for layer in network.layers().values())
    assert widest > 127
    source = check(network, images, tmp_path)
    assert "#define WEIGHT int16_t" in source.source


def test_vectors_prove_what_a_device_computes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = quantize(Residual(), draw_images(4), 3, 5)
    source = write_c(network, draw_images(3))
    assert "#define MODEL_TESTS 3" in source.vectors
    run_under_sanitizer(source, tmp_path)
    wrong = re.sub(r"(model_test_sums.*\{\n    \{\n *)", r"\g<1>1", source.vectors)
    (tmp_path / "test_vectors.h").write_text(wrong, encoding="utf-8")
    arguments = ["-DMODEL_INTEGERS_ONLY", "-o", "main", "model.c", "main.c"]
    subprocess.run([str(COMPILER), *arguments], cwd=tmp_path, check=True)
    assert subprocess.run([str(tmp_path / "main")], check=False).returncode == 1


def test_memory_is_that_of_the_values_needed_at_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 1, 1), nn.ReLU()]
    network = nn.Sequential(
        *layers, nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 5)
    )
    source = check(quantize(network, draw_images(4), 4, 8), draw_images(4), tmp_path)
    # 8 and 4 maps of bytes at the first step that reads and writes; no sums of 32 bits are kept.
    values = (8 + 4) * 16 * 16
    # Two rows of sums, the largest filter (the linear layer's), two ends per row and column of it.
    scratch = 2 * 4 * 64 + 384 + 2 * 2 * 4 * 3
    assert source.ram_bytes == values + scratch
    found = subprocess.run(
        ["size", "model.so"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if found.returncode == 0:
        static = int(found.stdout.splitlines()[1].split()[2])
        assert source.ram_bytes <= static < source.ram_bytes + 200


def test_tables_are_as_large_as_promised(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = check(quantize(Dense(), draw_images(4), 4, 8), draw_images(4), tmp_path)
    found = re.findall(r"^static const u?int(\d+)_t \w+\[(\d+)\] = ", source.source, re.M)
    tables = sum(int(bits) // 8 * int(length) for bits, length in found)
    assert source.flash_bytes == tables + 8 * 5


def test_layers_that_read_images_normalised_and_not_have_two_inputs(tmp_path: Path) -> None:
    network = Net(
        lambda net, x: net.head(pooled(relu(net.a(x)) + relu(net.b(x * 0.5 + 0.1)))),
        a=conv(3, 4),
        b=conv(3, 4),
        head=nn.Linear(4, 5),
    )
    torch.manual_seed(0)
    source = check(quantize(network, draw_images(4), 4, 8), draw_images(4), tmp_path)
    assert re.findall(r"const \w+ \*(image_\d)", source.header) == ["image_0", "image_1"]


def test_images_that_the_network_arranges_are_handed_in_as_they_are(tmp_path: Path) -> None:
    network = Net(
        lambda net, x: net.head(pooled(relu(net.a(pad(x[:, [2, 1, 0]], (1, 2, 0, 1)))))),
        a=conv(3, 4),
        head=nn.Linear(4, 5),
    )
    torch.manual_seed(0)
    images = draw_images(4)
    source = check(quantize(network, images, 4, 8), images, tmp_path)
    compiled = Compiled(source, tmp_path)
    for pixels, image in zip(images.numpy(), compiled.images[0], strict=True):
        assert np.array_equal(compiled.quantize(pixels), image)
