"""Which values are quantized once for all who read them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from converted import build, count_equal
from kinds import Net, conv, draw_images, pooled
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, pad, relu

IMAGES = draw_images(8)


def add_identity(net: Any, x: Tensor) -> Tensor:
    return net.b(relu(net.a(x))) + net.same(x)


def add_padded(net: Any, x: Tensor) -> Tensor:
    return net.b(relu(net.a(x))) + pad(x[:, 1:7], (0, 0, 0, 0, 1, 1))


def add_twice(net: Any, x: Tensor) -> Tensor:
    return net.b(relu(net.a(x))) + x + net.a(x)


def join(net: Any, x: Tensor) -> Tensor:
    return net.b(torch.cat([x[:, :4], net.a(x)[:, 4:]], 1)) + x


def pool_too(net: Any, x: Tensor) -> Tensor:
    return net.b(relu(net.a(x)))[:, :, ::2, ::2] + max_pool2d(x, 2)


def average_too(net: Any, x: Tensor) -> Tensor:
    return net.b(relu(net.a(x))) * torch.sigmoid(avg_pool2d(x, 8)) + x


def make(middle: Any) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(pooled(relu(middle(net, relu(net.stem(x))))))

    torch.manual_seed(0)
    parts = {"stem": conv(3, 8, 2), "a": conv(8, 8), "b": conv(8, 8)}
    return Net(forward, **parts, same=nn.Identity(), head=nn.Linear(8, 5)).eval()


MIDDLES = [add_identity, add_padded, add_twice, join, pool_too, average_too]


@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize("bits", [8, 4])
def test_no_convolution_is_read_by_two_quantizations(middle: Any, bits: int) -> None:
    network = build(make(middle), IMAGES, bits)
    assert not network.notes
    first = Counter(site.node for site in network.sites if not site.behind)
    assert set(first.values()) == {1}
    # Narrower layers quantize anew what was quantized for all.
    behind = [site for site in network.sites if site.behind]
    assert all(site.bits == bits < 8 for site in behind)
    assert count_equal(network, IMAGES) == len(IMAGES)


@pytest.mark.parametrize("middle", MIDDLES)
def test_sums_read_what_layers_sums_are_where_that_is_asked(middle: Any) -> None:
    network = build(make(middle), IMAGES, 8, quantize_sums=False)
    values = [path for path in network.requantizers() if path.startswith("values.")]
    # Products and tables read 8 bits whatever was asked.
    products = ["values.b", "values.avg_pool2d", "values.sigmoid"]
    assert values == (products if middle is average_too else [])
    assert [path for path in network.requantizers() if path.startswith("joints.")]
