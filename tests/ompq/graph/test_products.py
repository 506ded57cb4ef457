"""Products of two values are counted by what they compute, whatever their spelling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ompq.cost import bops
from ompq.graph import find_product_sites, trace

SIZE = (3, 8, 8)
ROWS, WIDTH = 16, 6


class Products(nn.Module):
    """Rows of an image, products of them, and a linear layer."""

    def __init__(self, multiply: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.cut, self.head = nn.Conv2d(3, WIDTH, 2, 2), nn.LazyLinear(5)
        self.multiply = multiply

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits."""
        return self.head(self.multiply(self.cut(x).flatten(2).transpose(1, 2)).flatten(1))


SQUARE = 2 * ROWS * ROWS * WIDTH
SPELLINGS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "operator": (lambda x: x @ (x + 1).transpose(1, 2), SQUARE),
    "matmul": (lambda x: torch.matmul(x.transpose(1, 2), 2 * x), SQUARE * WIDTH // ROWS),
    "bmm": (lambda x: torch.bmm(x, (x + 1).mT), SQUARE),
    "notation": (lambda x: torch.einsum("bic, bjc -> bij", x, x + 1), SQUARE),
    "notation with dots": (lambda x: torch.einsum("...ic,...jc->...ij", x, x + 1), SQUARE),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x + 1, 2 * x), 2 * SQUARE),
    "none": (lambda x: x * (x + 1), 0),
    "by a constant": (lambda x: x @ torch.ones(WIDTH, 4), 0),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_products_are_counted_with_the_layer_that_they_lead_to(name: str) -> None:
    multiply, expected = SPELLINGS[name]
    network = Products(multiply)
    network(torch.zeros(1, *SIZE))
    stem, head = trace(network, SIZE).groups
    assert (stem.product_ops, head.product_ops) == (0, expected)
    assert bool(head.products) == bool(expected)
    layers = stem.ops + head.ops
    # Of attention's two products one reads probabilities, which keep 8 bits.
    shares = expected // 2 if name == "attention" else 0
    assert head.probability_ops == shares
    others = expected - shares
    assert bops([stem, head], [4, 4], [4, 4]) == 16 * layers + 16 * others + 32 * shares
    of_layers = 4 * 8 * stem.ops + 4 * 3 * head.ops
    assert bops([stem, head], [4, 4], [8, 3]) == of_layers + 9 * others + 24 * shares
    assert bops([stem, head], [4, 4], [32, 32]) == 4 * 32 * layers + 32 * 32 * expected


class ProductOfLogits(nn.Module):
    """Products of which one leads to a layer, and one to none."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.mix, self.head = nn.Conv2d(3, 4, 2, 2), nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits."""
        rows = self.cut(x).flatten(2).transpose(1, 2)
        mixed = self.mix(rows @ (rows.transpose(1, 2) @ rows))
        logits = self.head(mixed)
        return (logits.transpose(1, 2) @ mixed).mean(2)


def test_a_product_that_no_layer_follows_counts_with_the_last_layer() -> None:
    _, mix, head = trace(ProductOfLogits(), SIZE).groups
    assert mix.products == ("matmul", "matmul_1")
    assert head.products == ("matmul_2",)
    assert head.product_ops == 2 * 5 * ROWS * 4


SHARES: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "softmax": (lambda x: x.softmax(-1), True),
    "written out": (
        lambda x: (x - x.amax(-1, True)).exp() / x.sub(x.amax(-1, True)).exp().sum(-1, True),
        True,
    ),
    "dropped": (lambda x: F.dropout(x.softmax(-1), 0.5, False), True),
    "of columns": (lambda x: x.softmax(-2).transpose(1, 2), True),
    "sigmoid": (lambda x: x.sigmoid(), False),
    "twice": (lambda x: 2 * x.softmax(-1), False),
    "signed": (lambda x: x / x.sum(-1, True), False),
}


@pytest.mark.parametrize("name", SHARES)
def test_probabilities_are_what_sums_to_one(name: str) -> None:
    share, expected = SHARES[name]
    network = Products(lambda x: share(x @ x.transpose(1, 2)) @ x)
    network(torch.zeros(1, *SIZE))
    *_, head = trace(network, SIZE).groups
    assert len(head.products) == 2
    assert len(head.probabilities) == expected
    assert head.probability_ops == expected * SQUARE


def test_what_products_read_is_found_behind_reshaping() -> None:
    graph = trace(ProductOfLogits(), SIZE)
    sites = find_product_sites(graph)
    assert sites == {"cut": ("mix",), "matmul": ("mix",), "mix": ("head",), "head": ("head",)}
