"""Which images, in which order, on which rank: pure functions of the seed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_PURPOSES = ("subset", "order", "augment")


def random_stream(seed: int, purpose: str, epoch: int = 0) -> torch.Generator:
    """A generator of its own for each seed, purpose and epoch."""
    entropy = (seed % 2**64, _PURPOSES.index(purpose), epoch)
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


def subset(total: int, num_samples: int | None, seed: int) -> Tensor:
    """Ascending indices of a fixed random subset of `total` images; all of them for None."""
    if num_samples is None or num_samples >= total:
        return torch.arange(total)
    chosen = torch.randperm(total, generator=random_stream(seed, "subset"))
    return chosen[:num_samples].sort().values


def shuffled(indices: Tensor, seed: int, epoch: int) -> Tensor:
    """`indices` in the order of this epoch."""
    generator = random_stream(seed, "order", epoch)
    return indices[torch.randperm(len(indices), generator=generator)]


def shard_positions(total: int, rank: int, world_size: int, *, equal: bool) -> Tensor:
    """Positions in a global order of `total` images that belong to `rank`.

    Every rank takes every `world_size`-th one, so that batches of b on each rank are together the
    global batch of b·`world_size`. Shards cover every image once; with `equal` they have the same
    length, and the last `total` mod `world_size` images belong to none.
    """
    used = total // world_size * world_size if equal else total
    return torch.arange(used)[rank::world_size]


def augmentation_seeds(total: int, seed: int, epoch: int = 0) -> Tensor:
    """One seed for every position of the global order, int64."""
    return torch.randint(2**62, (total,), generator=random_stream(seed, "augment", epoch))
