"""What a metric is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ompq.bitconfig import uniform
from ompq.graph import Group, NetworkGraph
from ompq.quantized import QuantizedNetwork, prepare
from ompq.quantizers import ActivationQuantizer, fake_quantize, lp_scale


@dataclass(frozen=True)
class Prices:
    """What each width costs each group; smaller is better.

    `weights` is L × K (groups × weight widths), `activations` L × A, and both are multiplied by
    exp(`log_scale`), L values. `passes` is the work that it took, in multiply-accumulates, as a
    multiple of a forward pass of all calibration images.
    """

    weights: NDArray[np.float64]
    activations: NDArray[np.float64]
    log_scale: NDArray[np.float64]
    passes: float

    @property
    def relative_scale(self) -> NDArray[np.float64]:
        """`log_scale` beside the largest: comparisons need no more, and nothing vanishes."""
        return np.asarray(self.log_scale - self.log_scale.max())


@dataclass(frozen=True)
class Subject:
    """A network whose groups shall be priced, and the images to do it with.

    `network` is prepared: batch norm folded, its activation quantizers disabled; metrics leave it
    as they find it. `groups` are the L groups to price, at `widths`; what they read at
    `act_widths`, which may be empty. `images` (n × channels × height × width) lie on the network's
    device; `labels` (n), where given, replace the network's own predictions.
    """

    network: QuantizedNetwork
    groups: tuple[Group, ...]
    widths: tuple[int, ...]
    act_widths: tuple[int, ...]
    images: Tensor
    labels: Tensor | None = None
    batch_size: int = 64
    seed: int = 0

    @classmethod
    def of(
        cls,
        graph: NetworkGraph,
        groups: Sequence[Group],
        images: Tensor,
        *,
        widths: Sequence[int],
        act_widths: Sequence[int] = (),
        labels: Tensor | None = None,
        batch_size: int = 64,
        seed: int = 0,
    ) -> Subject:
        """The network is copied; see the class for the rest."""
        network = prepare(graph, uniform(graph.groups, max(widths)))
        return cls(
            network=network,
            groups=tuple(groups),
            widths=tuple(widths),
            act_widths=tuple(act_widths),
            images=images,
            labels=labels,
            batch_size=batch_size,
            seed=seed,
        )

    @cached_property
    def sites(self) -> dict[str, tuple[int, ...]]:
        """The values to quantize at each of `act_widths`; see `sites_of`."""
        return sites_of(self.network, self.groups) if self.act_widths else {}

    def batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Images and labels, `batch_size` at a time."""
        yield from self.split(self.batch_size)

    def split(self, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Images and labels, `size` at a time."""
        for index in range(0, len(self.images), size):
            part = slice(index, index + size)
            yield self.images[part], None if self.labels is None else self.labels[part]

    @cached_property
    def fitted(self) -> dict[str, list[ActivationQuantizer]]:
        """Site → an enabled quantizer for each of `act_widths`, fitted to the first batch."""
        found: dict[str, list[ActivationQuantizer]] = {}

        def read(site: str, values: Tensor) -> None:
            found[site] = []
            for width in self.act_widths:
                quantizer = ActivationQuantizer(width).to(values.device)
                quantizer.fit(values)
                quantizer.enabled = True
                found[site].append(quantizer)

        with torch.no_grad(), self.watching(read):
            self.network.module(self.images[: self.batch_size])
        return found

    @contextmanager
    def watching(self, read: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
        """While the body runs, `read` sees the value of every site, and may replace it."""
        quantizers = self.network.activations()
        handles = [
            quantizers[site].register_forward_hook(
                lambda _module, _inputs, values, site=site: read(site, values)
            )
            for site in self.sites
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def holding(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """While the body runs, some layers have other weights (layer → tensor)."""
        weights = {layer: self.network.graph.layer_module(layer).weight for layer in values}
        before = {layer: weight.detach().clone() for layer, weight in weights.items()}
        with torch.no_grad():
            for layer, weight in weights.items():
                weight.copy_(values[layer])
        try:
            yield
        finally:
            with torch.no_grad():
                for layer, weight in weights.items():
                    weight.copy_(before[layer])

    def sum_over_layers(self, of_layer: Callable[[str], Sequence[float]]) -> NDArray[np.float64]:
        """Prices of layers as prices of groups, L × K."""
        rows = [np.sum([of_layer(layer) for layer in g.layers], axis=0) for g in self.groups]
        return np.array(rows, dtype=np.float64)

    def per_group(self, of_site: Mapping[str, Sequence[float]]) -> NDArray[np.float64]:
        """Prices of sites as prices of groups, L × A; groups that share a site share its price."""
        table = np.zeros((len(self.groups), len(self.act_widths)))
        for site, groups in self.sites.items():
            for group in groups:
                table[group] += np.asarray(of_site[site]) / len(groups)
        return table

    def macs(self, layers: Sequence[str] | None = None) -> int:
        """Multiply-accumulates of some layers (or all) for one image."""
        known = self.network.graph.layers
        return sum(known[name].macs for name in (known if layers is None else layers))


def rounded_weights(weight: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """A layer's weights rounded to nearest at each width, scales per channel by L_2.4 search."""
    return [fake_quantize(weight, lp_scale(weight, width)) for width in widths]


def sites_of(network: QuantizedNetwork, groups: Sequence[Group]) -> dict[str, tuple[int, ...]]:
    """Value that is quantized at a width to be chosen → the groups that read it, by index.

    Not among them are the images and what a group outside of `groups` reads too: they keep their 8
    bits.
    """
    index = {layer: i for i, group in enumerate(groups) for layer in group.layers}
    images = {node.name for node in network.module.graph.nodes if node.op == "placeholder"}
    return {
        site: tuple(sorted({index[layer] for layer in layers}))
        for site, layers in network.readers().items()
        if site not in images and all(layer in index for layer in layers)
    }
