from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ompq.data.batching import batch_sizes, rebatch

lengths = st.lists(st.integers(0, 9), max_size=8)


@given(st.integers(1, 500), st.integers(1, 70))
def test_batches_are_few_and_nearly_equal(total: int, largest: int) -> None:
    sizes = batch_sizes(total, largest)
    assert sum(sizes) == total
    assert len(sizes) == -(-total // largest)
    assert max(sizes) <= largest and max(sizes) - min(sizes) <= 1


@given(lengths, st.lists(st.integers(1, 9), max_size=8))
def test_rebatching_keeps_order_and_sizes(pieces: list[int], sizes: list[int]) -> None:
    values = torch.arange(sum(pieces))
    stream = [(part, -part) for part in values.split(pieces)] if pieces else []
    batches = list(rebatch(stream, sizes))
    held = sum(len(labels) for _, labels in batches)
    assert held == min(sum(pieces), sum(sizes))
    assert all(torch.equal(images, -labels) for images, labels in batches)
    if batches:
        assert torch.equal(torch.cat([images for images, _ in batches]), values[:held])
        assert [len(labels) for _, labels in batches[:-1]] == sizes[: len(batches) - 1]
