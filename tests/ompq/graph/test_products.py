"""Products of two values are counted by what they compute, whatever their spelling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ompq.cost import bops
from ompq.graph import trace

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
def test_products_are_counted_and_cost_8_bits_by_8(name: str) -> None:
    multiply, expected = SPELLINGS[name]
    network = Products(multiply)
    network(torch.zeros(1, *SIZE))
    groups = trace(network, SIZE).groups
    assert [group.product_ops for group in groups] == [expected] + [0] * (len(groups) - 1)
    layers = sum(group.ops for group in groups)
    count = len(groups)
    assert bops(groups, [4] * count, [4] * count) == 16 * layers + 64 * expected
    assert bops(groups, [4] * count, [32] * count) == 4 * 32 * layers + 32 * 32 * expected
