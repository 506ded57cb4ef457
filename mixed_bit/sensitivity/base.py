"""What a metric looks at, a probed network, and what it answers, sensitivities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ompq.assignment import uniform
from ompq.graph import Group, NetworkGraph, find_image_maps
from ompq.graph.operations import image_layout
from ompq.quantized import QuantizedNetwork, make_quantizable
from ompq.quantizers import ActivationQuantizer, fake_quantize, lp_scale


@dataclass(frozen=True)
class Sensitivity:
    """Table of what each width costs each group; smaller is better.

    Attributes:
        weights: L × K (groups × weight widths), to be multiplied by exp(`log_scale`).
        activations: L × A (groups × widths of what they read), to be multiplied alike.
        log_scale: L values, which may lie far outside the exponents of a float64.
        forward_passes: Work of the measurement in multiply-accumulates, as a multiple of a forward
            pass of all calibration images.
        unreached: Layers whose weights no gradient reaches, where gradients are measured.
    """

    weights: NDArray[np.float64]
    activations: NDArray[np.float64]
    log_scale: NDArray[np.float64]
    forward_passes: float
    unreached: tuple[str, ...] = ()

    @property
    def relative_scale(self) -> NDArray[np.float64]:
        """Return `log_scale` less its largest: ratios remain, and nothing vanishes in a float64."""
        return np.asarray(self.log_scale - self.log_scale.max())

    def by_column(self) -> NDArray[np.float64]:
        """Return the sensitivity of every pair of a weight and an activation width, L × (K·A).

        L × K where activation widths are not chosen.
        """
        if not self.activations.size:
            return np.asarray(self.weights, dtype=np.float64)
        both = self.weights[:, :, None] + self.activations[:, None, :]
        return np.asarray(both.reshape(len(both), -1), dtype=np.float64)


@dataclass(frozen=True)
class ProbedNetwork:
    """A network in which weights can be exchanged and activations watched, and its images.

    Attributes:
        network: Batch norm folded, activation quantizers disabled; metrics leave it as they find
            it.
        groups: The L groups to measure.
        widths: Weight widths to measure them at.
        act_widths: Widths of the values that groups read; empty where they are not chosen.
        images: Calibration images, n × channels × height × width, normalised, on the network's
            device.
        labels: Classes of the images, n integers; None for the network's own predictions.
        batch_size: Number of images per forward pass.
        seed: Seed of the labels that are drawn from predictions.
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
    ) -> ProbedNetwork:
        """Prepare a copy of the network of `graph`; the arguments are the class's attributes."""
        network = make_quantizable(graph, uniform(graph.groups, max(widths)))
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
        """Return the values to quantize at each of `act_widths`; see `find_chosen_sites`."""
        return find_chosen_sites(self.network, self.groups) if self.act_widths else {}

    def batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield images and labels, `batch_size` at a time."""
        yield from self.split(self.batch_size)

    def split(self, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield images and labels, `size` at a time."""
        for index in range(0, len(self.images), size):
            rows = slice(index, index + size)
            yield self.images[rows], None if self.labels is None else self.labels[rows]

    @cached_property
    def fitted(self) -> dict[str, list[ActivationQuantizer]]:
        """Fit a quantizer for each of `act_widths` to every site's values in the first batch."""
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
        """Let `read` see the value of every site, and replace it, while the body runs.

        Args:
            read: Function of a site's name and its value, which may return another value.
        """
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
        """Give some layers other weights (layer → tensor) while the body runs."""
        # Copied into the parameters: subgraphs of the network share them, and must see the change.
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

    def sum_over_layers(self, measure: Callable[[str], Sequence[float]]) -> NDArray[np.float64]:
        """Add up what `measure` gives for the layers of each group, L × K.

        A weight that several layers share counts once.

        Args:
            measure: Function of a layer's name that gives one number per weight width.
        """
        owners = self.network.graph.weight_owners()
        rows = [
            np.sum([measure(layer) for layer in group.layers if owners[layer] == layer], axis=0)
            for group in self.groups
        ]
        return np.array(rows, dtype=np.float64)

    def split_images(self, site: str, values: Tensor) -> Tensor:
        """Arrange the value of a site so that its first dimension is the images."""
        node = next(n for n in self.network.module.graph.nodes if n.name == site)
        layout = image_layout(node)
        return values if layout is None else layout.split(values)

    def spread_over_groups(self, of_site: Mapping[str, Sequence[float]]) -> NDArray[np.float64]:
        """Spread the sensitivities of sites evenly over the groups that read them, L × A.

        Args:
            of_site: Site → one number per activation width.
        """
        table = np.zeros((len(self.groups), len(self.act_widths)))
        for site, groups in self.sites.items():
            for group in groups:
                table[group] += np.asarray(of_site[site]) / len(groups)
        return table

    def count_macs(self, layers: Sequence[str] | None = None) -> int:
        """Count the multiply-accumulates of some layers (of all where None) for one image."""
        known = self.network.graph.layers
        return sum(known[name].macs for name in (known if layers is None else layers))


def round_weights(weight: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Round a layer's weights to nearest at each width, scales per channel by L_2.4 search."""
    return [fake_quantize(weight, lp_scale(weight, width)) for width in widths]


def find_chosen_sites(
    network: QuantizedNetwork, groups: Sequence[Group]
) -> dict[str, tuple[int, ...]]:
    """Find the values quantized at a width to be chosen, and the groups that read each, by index.

    What products of two values read counts with the group of the layer that they lead to. Not among
    them are the images, normalised or not, and what a group outside of `groups` reads too: they
    keep their 8 bits.
    """
    index = {layer: i for i, group in enumerate(groups) for layer in group.layers}
    images = {node.name for node in find_image_maps(network.module)}
    readers, of_products = network.readers(), network.product_readers()
    asked = {site: {*readers.get(site, ()), *of_products.get(site, ())} for site in network.calls()}
    return {
        site: tuple(sorted({index[layer] for layer in layers}))
        for site, layers in asked.items()
        if layers and site not in images and all(layer in index for layer in layers)
    }
