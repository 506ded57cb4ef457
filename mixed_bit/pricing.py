"""Prices by any metric, each measured once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mixed_bit.features import Orthogonality, Shard, measure_orthogonality
from mixed_bit.importance import Importance
from mixed_bit.metrics import PLAIN, Prices, Subject, orm, orm_sqnr
from mixed_bit.metrics.subject import sites_of
from ompq.bitconfig import uniform
from ompq.errors import OmpqError
from ompq.graph import Group, NetworkGraph
from ompq.quantized import prepare
from ompq.runtime import Ranks


class Pricer:
    """What quantizing costs the groups of one network, by whatever metric, on the same images.

    Args:
        graph: the network, on the device where it shall run.
        groups: the L groups to price.
        shards: calibration images on that device, one batch unless `unbiased`; a list, unless
            one metric alone is asked.
        widths: weight widths to price.
        act_widths: activation widths to price; none if they are not to be chosen.
        labels: of the images; None for the network's own predictions.
        centred: whether Gram matrices are centred.
        unbiased: whether orthogonality is averaged over several batches.
        ranks: this process among others; only orthogonality is shared between processes.
        seed: of drawn labels.
    """

    def __init__(
        self,
        graph: NetworkGraph,
        groups: Sequence[Group],
        shards: Iterable[Shard],
        *,
        widths: Sequence[int],
        act_widths: Sequence[int] = (),
        labels: Tensor | None = None,
        centred: bool = True,
        unbiased: bool = False,
        ranks: Ranks | None = None,
        seed: int = 0,
    ) -> None:
        self.graph, self.groups, self._shards = graph, tuple(groups), shards
        self.widths, self.act_widths = tuple(widths), tuple(act_widths)
        self.labels, self.seed = labels, seed
        self.seconds: dict[str, float] = {}
        self._centred, self._unbiased, self._ranks = centred, unbiased, ranks or Ranks()
        self._tables: dict[str, Prices] = {}

    @cached_property
    def orthogonality(self) -> Orthogonality:
        """Of the groups' features."""
        return measure_orthogonality(
            self.graph,
            self.groups,
            self._shards,
            centred=self._centred,
            unbiased=self._unbiased,
            ranks=self._ranks,
        )

    @cached_property
    def subject(self) -> Subject:
        """The network with all images at once, ready for the metrics that round it."""
        if self._ranks.world_size > 1:
            raise OmpqError("only --metric orm runs as several processes; start a single one")
        shards = self._kept()
        if not shards:
            raise OmpqError("there are no calibration images; check --save_path and --num_images")
        return Subject.of(
            self.graph,
            self.groups,
            torch.cat([shard.images for shard in shards]),
            widths=self.widths,
            act_widths=self.act_widths,
            labels=self.labels,
            batch_size=max(shard.rows for shard in shards),
            seed=self.seed,
        )

    def _kept(self) -> list[Shard]:
        if not isinstance(self._shards, list):
            self._shards = list(self._shards)
        return self._shards

    @property
    def num_images(self) -> int:
        """How many images prices were measured on."""
        if "subject" in self.__dict__:
            return len(self.subject.images)
        return self.orthogonality.num_images

    @cached_property
    def readers(self) -> list[tuple[int, ...]]:
        """For every value whose width is chosen, the groups that read it, by index."""
        if not self.act_widths:
            return []
        network = prepare(self.graph, uniform(self.graph.groups, max(self.widths)))
        return list(sites_of(network, self.groups).values())

    @property
    def fixed_activations(self) -> set[str]:
        """Names of the groups all of whose activations keep 8 bits."""
        if not self.act_widths:
            return set()
        chosen = {group for groups in self.readers for group in groups}
        return {group.name for i, group in enumerate(self.groups) if i not in chosen}

    def prices(self, metric: str, beta: float) -> Prices:
        """By one of `METRICS`; `beta` matters to those of orthogonality only."""
        if metric != "orm":
            self._kept()
        if metric == "orm":
            importance = Importance.of(self.orthogonality.matrix, beta)
            return orm.price(importance.log_importance, self.widths, self.act_widths)
        if metric == "orm_sqnr":
            importance = Importance.of(self.orthogonality.matrix, beta)
            return orm_sqnr.price(self._measured("sqnr"), importance.log_importance)
        return self._measured(metric)

    def even_prices(self) -> Prices:
        """Every bit of every group worth the same; nothing is measured."""
        return orm.price(np.zeros(len(self.groups)), self.widths, self.act_widths)

    def _measured(self, metric: str) -> Prices:
        if metric not in self._tables:
            start = time.perf_counter()
            self._tables[metric] = PLAIN[metric](self.subject)
            self.seconds[metric] = time.perf_counter() - start
        return self._tables[metric]
