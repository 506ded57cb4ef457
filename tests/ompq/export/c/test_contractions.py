"""Patterns of sums of products, found by trying."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ompq.export.c.contractions import (
    Loop,
    Pattern,
    bound_sums,
    find_pattern,
    make_contraction,
)
from ompq.export.c.program import Buffer, Region

Product = Callable[[Tensor, Tensor], Tensor]
SECOND = Region(Buffer(120, (-128, 127)))


class Call(nn.Module):
    def __init__(self, product: Product) -> None:
        super().__init__()
        self._product = product

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self._product(a, b)


def find(product: Product, first: tuple[int, ...], second: tuple[int, ...]) -> Pattern | None:
    return find_pattern(torch.fx.symbolic_trace(Call(product)), [first, second])


def test_a_matrix_product() -> None:
    pattern = find(torch.matmul, (1, 3, 4), (1, 4, 5))
    assert pattern == Pattern(
        (1, 3, 5), (Loop(1, 0, 0), Loop(3, 4, 0), Loop(5, 0, 1)), Loop(4, 1, 5), (0, 0)
    )
    task = make_contraction(pattern, SECOND)
    assert task is not None
    assert (task.columns, task.summed) == (Loop(5, 0, 1), Loop(4, 1, 5))
    assert task.loops == (Loop(1, 0, 0), Loop(1, 0, 0), Loop(3, 4, 0))


@pytest.mark.parametrize(
    ("product", "first", "second", "loops"),
    [
        (
            lambda a, b: a @ b.mT,
            (1, 2, 3, 4),
            (1, 2, 5, 4),
            (Loop(2, 12, 20), Loop(3, 4, 0), Loop(5, 0, 4)),
        ),
        (torch.bmm, (1, 3, 4), (1, 4, 5), (Loop(3, 4, 0), Loop(5, 0, 1))),
        (
            lambda a, b: torch.einsum("nid,njhd->nhij", a, b),
            (1, 3, 4),
            (1, 5, 2, 4),
            (Loop(2, 0, 4), Loop(3, 4, 0), Loop(5, 0, 8)),
        ),
        (lambda a, b: (a * b).sum(-1), (1, 3, 4), (1, 3, 4), (Loop(3, 4, 4),)),
        (
            lambda a, b: a[:, 1:] @ b[:, :, ::2],
            (1, 3, 4),
            (1, 4, 5),
            (Loop(2, 4, 0), Loop(3, 0, 2)),
        ),
    ],
)
def test_products_in_other_spellings(
    product: Product, first: tuple[int, ...], second: tuple[int, ...], loops: tuple[Loop, ...]
) -> None:
    pattern = find(product, first, second)
    assert pattern is not None
    assert tuple(loop for loop in pattern.loops if loop.size > 1)[-1] == loops[-1]
    if loops[-1].first == 0:
        task = make_contraction(pattern, SECOND)
        assert task is not None
        assert tuple(loop for loop in task.loops if loop.size > 1) == loops[:-1]


@pytest.mark.parametrize(
    "product",
    [
        lambda a, b: torch.flip(a, (2,)) @ b + torch.matmul(a, b),
        lambda a, b: (a @ b)[:, [0, 2, 1]],
        lambda a, b: torch.cat([a @ b, a @ b.flip(2)], 2),
        lambda a, b: 2 * a @ b,
        lambda a, b: (a @ b).tril(-1),
        lambda a, b: (a @ b).triu(1),
        lambda a, b: a.tril() @ b,
    ],
)
def test_what_loops_cannot_follow_has_no_pattern(product: Product) -> None:
    assert find(product, (1, 3, 4), (1, 4, 5)) is None


def test_results_that_read_other_elements_of_both_values_are_computed_one_by_one() -> None:
    pattern = find(lambda a, b: torch.einsum("nijd,nkjd->nikj", a, b), (1, 2, 3, 4), (1, 5, 3, 4))
    assert pattern is not None
    task = make_contraction(pattern, SECOND)
    assert task is not None
    assert task.columns == Loop(1, 0, 0)
    assert task.loops == (Loop(2, 12, 0), Loop(5, 0, 12), Loop(3, 4, 4))


def test_bounds_hold_for_every_sign() -> None:
    assert bound_sums(3, (-2, 5), (-7, 1)) == (-105, 42)
    assert bound_sums(3, (1, 5), (2, 3)) == (0, 45)
