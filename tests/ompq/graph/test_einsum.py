"""Sums of products in Einstein's notation are products of matrices, where they are those."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ompq.graph import trace
from ompq.graph.operations import operation

SIZE = (3, 8, 8)


class Summed(nn.Module):
    """Rows of an image by heads, n × heads × rows × channels, a sum of products, and a layer."""

    def __init__(self, equation: str, orders: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.equation, self.orders = equation, orders
        self.cut, self.head = nn.Conv2d(3, 6, 2, 2), nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits."""
        rows = self.cut(x).flatten(2).transpose(1, 2).unflatten(2, (2, 3)).transpose(1, 2)
        first, second = (rows.permute(order) for order in self.orders)
        return self.head(torch.einsum(self.equation, first, second + 1).flatten(1))


def read_operations(network: nn.Module) -> list[str]:
    """Trace a network, compare it with itself, and list its operations."""
    images = torch.randn(2, *SIZE)
    network(images)
    graph = trace(network, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(graph.module(images), network.eval()(images))
    return [operation(node, graph.module) for node in graph.module.graph.nodes]


@settings(max_examples=25, deadline=None)
@given(
    first=st.permutations("hic"),
    second=st.permutations("hjc"),
    result=st.sampled_from(list(permutations("hij"))),
)
def test_a_product_of_matrices_is_one_in_any_order(
    first: list[str], second: list[str], result: tuple[str, ...]
) -> None:
    orders = tuple(
        (0, *("nhic".index(letter.replace("j", "i")) for letter in term))
        for term in (first, second)
    )
    equation = f"n{''.join(first)},n{''.join(second)}->n{''.join(result)}"
    found = read_operations(Summed(equation, orders))
    assert "matmul" in found and "einsum" not in found


SAME = ((0, 1, 2, 3), (0, 1, 2, 3))


@pytest.mark.parametrize("equation", ["... i c, ... j c -> ... i j", "nhic,nhjc->nhij"])
def test_dots_and_blanks_are_read(equation: str) -> None:
    assert "einsum" not in read_operations(Summed(equation, SAME))


@pytest.mark.parametrize(
    "equation",
    [
        "nhic,nhic->nhi",
        "nhic,nhjd->nhij",
        "nhic,nkjc->nhkij",
        "nhic,nhjc->nij",
        "nhic,nhjc",
        "nhic,nhjc->nh",
    ],
)
def test_other_sums_stay_as_they_are(equation: str) -> None:
    assert "einsum" in read_operations(Summed(equation, SAME))
