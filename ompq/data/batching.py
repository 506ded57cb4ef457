"""Batches of images: cut to chosen sizes, or taken from whatever a user has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ompq.errors import OmpqError

Batch = tuple[Tensor, Tensor]


def batch_sizes(total: int, largest: int) -> list[int]:
    """Split `total` into the fewest batches of nearly equal size, none above `largest`.

    Args:
        total: Number of images.
        largest: Greatest allowed batch size, at least 1.

    Returns:
        The sizes, larger ones first; they differ by at most one.

    >>> batch_sizes(10, 4)
    [4, 3, 3]
    """
    count = -(-total // largest)
    return [total // count + (index < total % count) for index in range(count)]


def rebatch(pieces: Iterable[Batch], sizes: Iterable[int]) -> Iterator[Batch]:
    """Cut pieces of any length into batches of `sizes`; where images run out, the last is shorter.

    Args:
        pieces: Pairs of images (n × …) and labels (n), n being any number. No piece is asked for
            that `sizes` does not need, so that its images are never decoded.
        sizes: Wanted batch sizes, at least 1 each.

    >>> pieces = [(torch.zeros(3, 1), torch.arange(3)), (torch.zeros(2, 1), torch.arange(2))]
    >>> [labels.tolist() for _, labels in rebatch(pieces, [2, 2, 2])]
    [[0, 1], [2, 0], [1]]
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


def iterate_images(images: Tensor | Iterable[Tensor | Sequence[Tensor]]) -> Iterator[Tensor]:
    """Yield the images of every batch, without what a loader yields beside them.

    Args:
        images: One batch, n × channels × height × width, floats; or batches, or pairs of these with
            labels, as a `DataLoader` yields them.

    Raises:
        OmpqError: A batch is something else.

    >>> pairs = [(torch.zeros(2, 3, 8, 8), "labels"), torch.ones(1, 3, 8, 8)]
    >>> [len(batch) for batch in iterate_images(pairs)]
    [2, 1]
    """
    batches = [images] if isinstance(images, Tensor) else images
    for batch in batches:
        yield _check_images(batch[0] if isinstance(batch, tuple | list) and batch else batch)


def _check_images(batch: object) -> Tensor:
    """Return a batch of images as float32, or say what it is instead."""
    wanted = "give floats, n × channels × height × width, normalised, or batches of them"
    if not isinstance(batch, Tensor):
        raise OmpqError(f"`images` holds a {type(batch).__name__}; {wanted}")
    if batch.dim() != 4 or not len(batch):
        raise OmpqError(f"`images` is {'×'.join(map(str, batch.shape))}; {wanted}")
    if not batch.is_floating_point():
        raise OmpqError(f"`images` is {str(batch.dtype).removeprefix('torch.')}; {wanted}")
    bad = (~batch.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise OmpqError(
            f"calibration image {bad[0]} (of {len(bad)} such) holds NaN or infinity; leave it out"
        )
    return batch.float()


def collect_images(images: Tensor | Iterable[Tensor | Sequence[Tensor]]) -> Tensor:
    """Hold all images of some batches, n × channels × height × width; see `iterate_images`.

    Raises:
        OmpqError: There are none.
    """
    batches = list(iterate_images(images))
    if not batches:
        raise OmpqError("there are no calibration images")
    return batches[0] if len(batches) == 1 else torch.cat(batches)


def iterate_pairs(batches: Iterable[object]) -> Iterator[Batch]:
    """Yield images and labels of every batch that a user's loader gives.

    Raises:
        OmpqError: A batch is something else than a pair of tensors, or labels are no class numbers.

    >>> pairs = [[torch.zeros(2, 3, 8, 8), torch.tensor([7, 1])]]
    >>> [(len(images), len(labels)) for images, labels in iterate_pairs(pairs)]
    [(2, 2)]
    """
    for batch in batches:
        pair = list(batch) if isinstance(batch, tuple | list) else []
        if len(pair) != 2 or not all(isinstance(value, Tensor) for value in pair):
            raise OmpqError(
                f"a batch of images is a {type(batch).__name__}; give pairs of two tensors, images "
                "(n × channels × height × width) and labels (n)"
            )
        images, labels = pair
        if labels.dim() != 1 or labels.is_floating_point() or len(labels) != len(images):
            shape = "×".join(map(str, labels.shape))
            kind = str(labels.dtype).removeprefix("torch.")
            raise OmpqError(
                f"the labels of {len(images)} images are {shape} {kind}; give n whole class numbers"
            )
        yield images, labels
