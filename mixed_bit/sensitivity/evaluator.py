"""Sensitivities by any metric, each measured once, on the same images."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixed_bit.problem import Problem
from mixed_bit.sensitivity import METRICS, ProbedNetwork, Sensitivity, orm
from mixed_bit.sensitivity.features import Orthogonality, Shard, measure_orthogonality
from mixed_bit.sensitivity.importance import Importance
from ompq.errors import OmpqError
from ompq.runtime import Ranks


class SensitivityEvaluator:
    """Evaluator of what quantizing costs the groups of one problem, by whatever metric.

    Args:
        problem: Groups and widths to measure; its settings choose nothing here but the centring.
        shards: Calibration images on the network's device, one batch unless `unbiased`; a list,
            unless one metric alone is asked.
        labels: Classes of the images, n integers; None for the network's own predictions.
        unbiased: Whether to average the unbiased minibatch estimate of orthogonality over several
            batches.
        ranks: This process among others; only orthogonality is shared between processes.
        seed: Seed of the labels that are drawn from predictions.
    """

    def __init__(
        self,
        problem: Problem,
        shards: Iterable[Shard],
        *,
        labels: Tensor | None = None,
        unbiased: bool = False,
        ranks: Ranks | None = None,
        seed: int = 0,
    ) -> None:
        self.problem = problem
        self.labels, self.seed = labels, seed
        self.num_images = 0
        self.seconds: dict[str, float] = {}
        self._shards, self._are_kept = shards, isinstance(shards, list)
        if isinstance(shards, list):
            self.num_images = sum(shard.rows for shard in shards)
        self._unbiased, self.ranks = unbiased, ranks or Ranks()
        self._measured: dict[str, Sensitivity] = {}

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the weight widths that are measured."""
        return self.problem.widths

    @property
    def act_widths(self) -> tuple[int, ...]:
        """Return the activation widths that are measured; empty where they are not chosen."""
        return self.problem.act_widths

    @cached_property
    def orthogonality(self) -> Orthogonality:
        """Measure the orthogonality of the groups' features."""
        return measure_orthogonality(
            self.problem.graph,
            self.problem.listed,
            self._stream(),
            centred=self.problem.settings.centred,
            unbiased=self._unbiased,
            ranks=self.ranks,
        )

    def importance(self, beta: float) -> Importance:
        """Derive γ, θ and c of the groups for one β."""
        return Importance.of(self.orthogonality.matrix, beta)

    def log_importance(self, beta: float) -> NDArray[np.float64]:
        """Return ln c of the groups for one β, L values."""
        return self.importance(beta).log_importance

    @cached_property
    def probed(self) -> ProbedNetwork:
        """Prepare the network with all images at once, for the metrics that round it.

        Raises:
            OmpqError: There are several processes, or no images.
        """
        if self.ranks.world_size > 1:
            raise OmpqError("only `metric` orm runs as several processes; start a single one")
        shards = self._keep()
        if not shards:
            raise OmpqError("there are no calibration images; check `root` and `num_images`")
        return ProbedNetwork.of(
            self.problem.graph,
            self.problem.listed,
            torch.cat([shard.images for shard in shards]),
            widths=self.widths,
            act_widths=self.act_widths,
            labels=self.labels,
            batch_size=max(shard.rows for shard in shards),
            seed=self.seed,
        )

    def sensitivity(self, metric: str, beta: float) -> Sensitivity:
        """Measure the sensitivities by one metric, or return what was measured before.

        Args:
            metric: Name of one of `METRICS`.
            beta: β of θ = exp(−β γ); it matters to the metrics of orthogonality only.
        """
        chosen = METRICS[metric]
        if not chosen.streams:
            # What orthogonality reads first, another metric will want to read again.
            self._keep()
        if chosen.uses_orthogonality:
            return chosen.measure(self, beta)
        if metric not in self._measured:
            start = time.perf_counter()
            self._measured[metric] = chosen.measure(self, beta)
            self.seconds[metric] = time.perf_counter() - start
        return self._measured[metric]

    def uniform_sensitivity(self) -> Sensitivity:
        """Return the sensitivity that values every bit of every group alike; measures nothing."""
        return orm.measure(np.zeros(len(self.problem.listed)), self.widths, self.act_widths)

    def _stream(self) -> Iterator[Shard]:
        """Yield the shards, counting the images of those that pass for the first time."""
        for shard in self._shards:
            if not self._are_kept:
                self.num_images += shard.rows
            yield shard

    def _keep(self) -> list[Shard]:
        """Hold all images from now on, so that every metric can read them."""
        if not self._are_kept:
            self._shards = list(self._stream())
            self._are_kept = True
        return list(self._shards)
