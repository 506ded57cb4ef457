from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ompq.data.sampling import (
    choose_subset,
    draw_augmentation_seeds,
    select_shard,
    shuffle_indices,
)

totals, worlds, seeds = st.integers(0, 300), st.integers(1, 9), st.integers(0, 2**63)


@given(totals, worlds)
def test_shards_cover_every_position_once(total: int, world: int) -> None:
    shards = [select_shard(total, rank, world, equal=False) for rank in range(world)]
    assert sorted(torch.cat(shards).tolist()) == list(range(total))


@given(totals, worlds)
def test_equal_shards_drop_only_the_rest(total: int, world: int) -> None:
    shards = [select_shard(total, rank, world, equal=True) for rank in range(world)]
    assert {len(shard) for shard in shards} == {total // world}
    assert sorted(torch.cat(shards).tolist()) == list(range(total // world * world))


@given(st.integers(1, 40), worlds, st.integers(1, 7))
def test_batches_of_all_ranks_make_the_global_batch(batches: int, world: int, batch: int) -> None:
    total = batches * world * batch
    shards = [select_shard(total, rank, world, equal=True) for rank in range(world)]
    first = torch.cat([shard[:batch] for shard in shards])
    assert sorted(first.tolist()) == list(range(world * batch))


@given(totals, st.integers(1, 400), seeds)
def test_subset_is_fixed_sorted_and_without_repeats(total: int, count: int, seed: int) -> None:
    chosen = choose_subset(total, count, seed)
    assert torch.equal(chosen, choose_subset(total, count, seed))
    assert len(chosen) == min(total, count)
    assert torch.equal(chosen, chosen.unique())


@given(st.integers(20, 200), seeds)
def test_every_epoch_and_seed_has_its_own_order(total: int, seed: int) -> None:
    order = shuffle_indices(torch.arange(total), seed, epoch=0)
    assert torch.equal(order, shuffle_indices(torch.arange(total), seed, epoch=0))
    assert torch.equal(order.sort().values, torch.arange(total))
    assert not torch.equal(order, shuffle_indices(torch.arange(total), seed, epoch=1))
    assert not torch.equal(order, shuffle_indices(torch.arange(total), seed + 1, epoch=0))


def test_augmentation_is_drawn_apart_from_the_order() -> None:
    assert draw_augmentation_seeds(1000, seed=3).unique().numel() == 1000
    assert not torch.equal(
        draw_augmentation_seeds(9, seed=3), draw_augmentation_seeds(9, seed=3, epoch=1)
    )
