"""Which images, in which order, on which rank: pure functions of the seed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_PURPOSES = ("subset", "order", "augment")


def seed_generator(seed: int, purpose: str, epoch: int = 0) -> torch.Generator:
    """Return a random generator whose stream belongs to one seed, purpose and epoch.

    Args:
        seed: Seed of the run, any integer.
        purpose: "subset", "order" or "augment".
        epoch: Number of the epoch, for what is drawn anew in every epoch.
    """
    entropy = (seed % 2**64, _PURPOSES.index(purpose), epoch)
    # A hash of all three: seeds next to each other (seed + epoch, say) would share streams.
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


def choose_subset(total: int, num_samples: int | None, seed: int) -> Tensor:
    """Choose a fixed random subset of a data set.

    Args:
        total: Number of images in the data set.
        num_samples: Number of images to choose; None or more than `total` for all of them.
        seed: Seed that decides the subset.

    Returns:
        The indices of the chosen images, ascending, int64.
    """
    if num_samples is None or num_samples >= total:
        return torch.arange(total)
    chosen = torch.randperm(total, generator=seed_generator(seed, "subset"))
    return chosen[:num_samples].sort().values


def shuffle_indices(indices: Tensor, seed: int, epoch: int) -> Tensor:
    """Return `indices` (n, int64) in the random order of one epoch."""
    generator = seed_generator(seed, "order", epoch)
    return indices[torch.randperm(len(indices), generator=generator)]


def select_shard(total: int, rank: int, world_size: int, *, equal: bool) -> Tensor:
    """Return the positions in the global order of all images that belong to one rank.

    Every rank takes every `world_size`-th position, so that batches of b on each rank are together
    the global batch of b · `world_size`.

    Args:
        total: Number of images of all ranks together.
        rank: Rank of this process, from 0.
        world_size: Number of processes.
        equal: Whether all ranks get equally many positions, in which case the last
            `total` mod `world_size` belong to none; otherwise shards cover every position once.

    Returns:
        The positions, ascending, int64.

    >>> select_shard(7, rank=0, world_size=3, equal=False).tolist()
    [0, 3, 6]
    >>> select_shard(7, rank=0, world_size=3, equal=True).tolist()
    [0, 3]
    """
    used = total // world_size * world_size if equal else total
    return torch.arange(used)[rank::world_size]


def draw_augmentation_seeds(total: int, seed: int, epoch: int = 0) -> Tensor:
    """Draw one seed for the image at each of `total` positions of the global order, int64."""
    return torch.randint(2**62, (total,), generator=seed_generator(seed, "augment", epoch))
