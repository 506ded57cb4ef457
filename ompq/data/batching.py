"""Cutting a stream of images into batches of chosen sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


def batch_sizes(total: int, largest: int) -> list[int]:
    """Split `total` into the fewest parts of nearly equal size, none above `largest`."""
    count = -(-total // largest)
    return [total // count + (index < total % count) for index in range(count)]


def rebatch(pieces: Iterable[Batch], sizes: Iterable[int]) -> Iterator[Batch]:
    """Cut pieces of any length into batches of `sizes`, the last ones shorter if images run out.

    Args:
        pieces: images n × …, and labels n.
        sizes: wanted lengths, positive; more pieces than they need are not asked for.
    """
    stream = iter(pieces)
    images: list[Tensor] = []
    labels: list[Tensor] = []
    held = 0
    for size in sizes:
        while held < size and (piece := next(stream, None)) is not None:
            images.append(piece[0])
            labels.append(piece[1])
            held += len(piece[1])
        if not held:
            return
        joined, names = torch.cat(images), torch.cat(labels)
        yield joined[:size], names[:size]
        images, labels, held = [joined[size:]], [names[size:]], max(held - size, 0)
