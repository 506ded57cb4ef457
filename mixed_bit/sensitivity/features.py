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
    gram,
    inner_products,
    normalise,
)
from ompq.errors import OmpqError
from ompq.graph import Group, NetworkGraph, run_with_taps
from ompq.runtime import Ranks, gather_rows


class Shard(NamedTuple):
    """This rank's part of a batch: its images (n_r × C × H × W) and the rows of all ranks."""

    images: Tensor
    rows: int


@dataclass(frozen=True)
class Orthogonality:
    """The orthogonality matrix of a network's groups and how it was measured.

    `matrix` is L × L, float64. `unbiased` tells whether it is the minibatch estimate. `constant`
    names the groups whose feature is the same for every image. `seconds` splits the time between
    the network's own `forward` and the `orthogonality` computed on the way.
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
    computes its share of the columns of every Gram matrix, and all get the same result. At no time
    is more than one group's feature held.

    Args:
        graph: the network, on the device where it shall run.
        groups: those of its groups that take part, in execution order.
        batches: shards on that device. One batch unless `unbiased`.
        centred: centre the Gram matrices.
        unbiased: use the unbiased estimator, averaged over the batches.
        ranks: this process among others.

    Raises:
        OmpqError: no or too few images, or a feature that is not finite (names its group).
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
        run_with_taps(graph, batch.images, reader.indices, reader.begin(batch.rows))
        part = reader.finish(unbiased)
        inside += time.perf_counter() - start
        products = part if products is None else products + part
        rows, count = rows + batch.rows, count + 1
    if products is None:
        raise OmpqError("there are no calibration images; check --save_path and --num_images")
    if count > 1 and not unbiased:
        raise ValueError("several batches need the unbiased estimator")
    forward = inside - reader.seconds
    with reader.timed():
        matrix, constant = normalise(products)
    seconds = {"forward": forward, "orthogonality": reader.seconds}
    names = tuple(groups[index].name for index in constant)
    return Orthogonality(matrix.cpu().numpy(), rows, count, unbiased, names, seconds)


class _Timed:
    """Adds the time of a `with` body to its owner."""

    def __init__(self, owner: _GramReader) -> None:
        self._owner = owner

    def __enter__(self) -> None:
        self._owner.synchronise()
        self._start = time.perf_counter()

    def __exit__(self, *unused: object) -> None:
        self._owner.synchronise()
        self._owner.seconds += time.perf_counter() - self._start


class _GramReader:
    """Collects the Gram matrices of one batch at a time."""

    def __init__(self, groups: Sequence[Group], centred: bool, ranks: Ranks) -> None:
        self.indices = {group.tap: index for index, group in enumerate(groups)}
        self.seconds = 0.0
        self._names = [group.name for group in groups]
        self._centred = centred
        self._ranks = ranks
        self._rows = 0
        self._grams: Tensor | None = None

    def begin(self, rows: int) -> _GramReader:
        self._rows = rows
        self._grams = None
        return self

    def __call__(self, tap: str, feature: Tensor) -> None:
        with self.timed():
            self._check_rows(tap, feature)
            whole = gather_rows(feature, self._rows, self._ranks)
            if self._grams is None:
                shape = (len(self._names), self._rows, self._rows)
                self._grams = torch.zeros(shape, dtype=torch.float64, device=feature.device)
            share = _share(whole[0].numel(), self._ranks)
            self._grams[self.indices[tap]] = gram(whole, centred=self._centred, columns=share)

    def finish(self, unbiased: bool) -> Tensor:
        with self.timed():
            grams = self._grams
            if grams is None:
                raise ValueError("no group takes part")
            if self._ranks.world_size > 1:
                distributed.all_reduce(grams)
            finite = grams.isfinite().flatten(1).all(dim=1)
            if not finite.all():
                name = self._names[int(torch.nonzero(~finite)[0])]
                raise OmpqError(
                    f"the feature of {name} is not finite; check the weights up to that layer "
                    "and the calibration images"
                )
            return inner_products(grams, centred=self._centred, unbiased=unbiased)

    def timed(self) -> _Timed:
        return _Timed(self)

    def synchronise(self) -> None:
        if self._grams is not None and self._grams.device.type == "cuda":
            torch.cuda.synchronize(self._grams.device)

    def _check_rows(self, tap: str, feature: Tensor) -> None:
        expected = _rows_of_rank(self._rows, self._ranks)
        if feature.shape[0] != expected:
            name = self._names[self.indices[tap]]
            raise OmpqError(
                f"the feature of {name} has shape {tuple(feature.shape)} for {expected} images; "
                "its first dimension must be the image"
            )


def _rows_of_rank(rows: int, ranks: Ranks) -> int:
    return rows // ranks.world_size + (ranks.rank < rows % ranks.world_size)


def _share(width: int, ranks: Ranks) -> slice:
    """This rank's contiguous share of the columns."""
    bounds = [width * rank // ranks.world_size for rank in (ranks.rank, ranks.rank + 1)]
    return slice(*bounds)
