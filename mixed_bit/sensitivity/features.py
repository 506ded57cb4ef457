"""One forward pass per batch, each feature turned into its Gram matrix as it appears."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from mixed_bit.sensitivity.orthogonality import (
    MINIMUM_UNBIASED_IMAGES,
    compute_gram,
    compute_inner_products,
    normalise,
)
from ompq.errors import OmpqError
from ompq.graph import Group, NetworkGraph, run_with_taps
from ompq.runtime import Ranks, gather_rows


class Shard(NamedTuple):
    """This rank's share of a batch.

    Attributes:
        images: Images of this rank, n_r × channels × height × width, normalised.
        rows: Number of images of all ranks.
    """

    images: Tensor
    rows: int


@dataclass(frozen=True)
class Orthogonality:
    """The orthogonality matrix of a network's groups and how it was measured.

    Attributes:
        matrix: Orthogonality matrix, L × L, float64.
        num_images: Number of images of all batches and ranks.
        num_batches: Number of batches.
        unbiased: Whether the matrix is the minibatch estimate.
        constant: Names of the groups whose feature does not differ between images.
        seconds: Time of the network's own `forward`, and of the `orthogonality` computed on the
            way.
    """

    matrix: NDArray[np.float64]
    num_images: int
    num_batches: int
    unbiased: bool
    constant: tuple[str, ...]
    seconds: dict[str, float]


def measure_orthogonality(
    graph: NetworkGraph,
    groups: Sequence[Group],
    batches: Iterable[Shard],
    *,
    centred: bool = True,
    unbiased: bool = False,
    ranks: Ranks | None = None,
) -> Orthogonality:
    """Measure the orthogonality of `groups` on `batches` of images.

    Under several ranks each passes its own shard of every batch; features are gathered, each rank
    computes its share of the columns of every Gram matrix, and all get one result. At no time
    is more than one group's feature held.

    Args:
        graph: Traced network, on the device where it shall run.
        groups: Groups of the network that take part, in execution order.
        batches: Shards on that device, one for each batch. One batch unless `unbiased`.
        centred: Whether to centre the Gram matrices.
        unbiased: Whether to use the unbiased estimator, averaged over the batches.
        ranks: This process among others; None for one process.

    Raises:
        OmpqError: There are no or too few images, or a feature is not finite (names its group).
        ValueError: There are several batches, and `unbiased` is false.
    """
    reader = _GramReader(groups, centred, ranks or Ranks())
    products: Tensor | None = None
    rows = count = 0
    inside = 0.0
    for batch in batches:
        if batch.rows < (MINIMUM_UNBIASED_IMAGES if unbiased else 2):
            raise OmpqError(
                f"a batch of {batch.rows} image(s) has no orthogonality; give more images "
                "(two at least, four for each batch of the minibatch estimate)"
            )
        start = time.perf_counter()
        run_with_taps(graph, batch.images, reader.indices, reader.start_batch(batch.rows))
        of_batch = reader.finish_batch(unbiased)
        inside += time.perf_counter() - start
        # The sum will do: what the mean divides by cancels in the orthogonality matrix.
        products = of_batch if products is None else products + of_batch
        rows, count = rows + batch.rows, count + 1
    if products is None:
        raise OmpqError("there are no calibration images; check `root` and `num_images`")
    if count > 1 and not unbiased:
        raise ValueError("several batches need the unbiased estimator")
    # Gram matrices are computed inside the forward pass: what they took is not its own.
    forward = inside - reader.seconds
    with reader.timed():
        matrix, constant = normalise(products)
    seconds = {"forward": forward, "orthogonality": reader.seconds}
    names = tuple(groups[index].name for index in constant)
    return Orthogonality(matrix.cpu().numpy(), rows, count, unbiased, names, seconds)


class _Timed:
    """Context manager that adds the time of its body to its owner."""

    def __init__(self, owner: _GramReader) -> None:
        self._owner = owner

    def __enter__(self) -> None:
        self._owner.synchronise()
        self._start = time.perf_counter()

    def __exit__(self, *unused: object) -> None:
        self._owner.synchronise()
        self._owner.seconds += time.perf_counter() - self._start


class _GramReader:
    """Collector of the Gram matrices of one batch at a time.

    Args:
        groups: The L groups that take part.
        centred: Whether the Gram matrices will be centred.
        ranks: This process among others.
    """

    def __init__(self, groups: Sequence[Group], centred: bool, ranks: Ranks) -> None:
        self.indices = {group.tap: index for index, group in enumerate(groups)}
        self.seconds = 0.0
        self._names = [group.name for group in groups]
        self._centred = centred
        self._ranks = ranks
        self._rows = 0
        self._grams: Tensor | None = None

    def start_batch(self, rows: int) -> _GramReader:
        """Start a batch of `rows` images in all ranks; returns itself, to be called by taps."""
        self._rows = rows
        self._grams = None
        return self

    def __call__(self, tap: str, feature: Tensor) -> None:
        """Add this rank's share of the Gram matrix of a group's feature."""
        with self.timed():
            self._check_rows(tap, feature)
            whole = gather_rows(feature, self._rows, self._ranks)
            if self._grams is None:
                shape = (len(self._names), self._rows, self._rows)
                self._grams = torch.zeros(shape, dtype=torch.float64, device=feature.device)
            # X Xᵀ is the sum over columns: ranks that share these out need no more than a sum.
            columns = _select_columns(whole[0].numel(), self._ranks)
            share = compute_gram(whole, centred=self._centred, columns=columns)
            self._grams[self.indices[tap]] = share

    def finish_batch(self, unbiased: bool) -> Tensor:
        """Compute the inner products of the batch's Gram matrices, L × L.

        Raises:
            OmpqError: A feature is not finite (names its group).
        """
        with self.timed():
            grams = self._grams
            if grams is None:
                raise ValueError("no group takes part")
            if self._ranks.world_size > 1:
                distributed.all_reduce(grams)
            # After the sum, so that all ranks see it and none waits for one that gave up.
            finite = grams.isfinite().flatten(1).all(dim=1)
            if not finite.all():
                name = self._names[int(torch.nonzero(~finite)[0])]
                raise OmpqError(
                    f"the feature of {name} is not finite; check the weights up to that layer "
                    "and the calibration images"
                )
            return compute_inner_products(grams, centred=self._centred, unbiased=unbiased)

    def timed(self) -> _Timed:
        """Return a context manager that adds the time of its body to `seconds`."""
        return _Timed(self)

    def synchronise(self) -> None:
        """Wait for the GPU: it works on while the clock is read, and would be timed elsewhere."""
        if self._grams is not None and self._grams.device.type == "cuda":
            torch.cuda.synchronize(self._grams.device)

    def _check_rows(self, tap: str, feature: Tensor) -> None:
        expected = _count_rows(self._rows, self._ranks)
        if feature.shape[0] != expected:
            name = self._names[self.indices[tap]]
            raise OmpqError(
                f"the feature of {name} has shape {tuple(feature.shape)} for {expected} images; "
                "its first dimension must be the image; keep images first there"
            )


def _count_rows(rows: int, ranks: Ranks) -> int:
    """Count the images of a batch that are this rank's; the first ranks take the remainder."""
    return rows // ranks.world_size + (ranks.rank < rows % ranks.world_size)


def _select_columns(width: int, ranks: Ranks) -> slice:
    """Select this rank's contiguous share of the columns.

    >>> _select_columns(10, Ranks(rank=1, world_size=3, local_rank=1))
    slice(3, 6, None)
    """
    bounds = [width * rank // ranks.world_size for rank in (ranks.rank, ranks.rank + 1)]
    return slice(*bounds)
