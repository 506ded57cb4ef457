"""What an allocation does to the output: the network run with all its weights rounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mixed_bit.sensitivity import ProbedNetwork
from mixed_bit.sensitivity.base import round_weights
from ompq.assignment import Assignment
from ompq.evaluation import kl_divergence


@dataclass(frozen=True)
class Outcome:
    """What an allocation does to the output on some images.

    Attributes:
        kl: Divergence KL(float ‖ rounded) per image, nats.
        agreement: How often both networks name one class, per cent.
        top1: How often the rounded network names the label, per cent; None without labels.
    """

    kl: float
    agreement: float
    top1: float | None


class OutcomeEvaluator:
    """Measures allocations by running them; scales by L_2.4 search, rounding to nearest.

    Args:
        probed: The network. Its activations are rounded too where an assignment chooses among its
            `act_widths`; else they stay in float.
        images: n × channels × height × width, on the network's device.
        labels: n classes, −1 or None where there are none.
    """

    def __init__(self, probed: ProbedNetwork, images: Tensor, labels: Tensor | None = None) -> None:
        self._probed, self._images = probed, images
        self._labels = labels if labels is not None and bool((labels >= 0).all()) else None
        self._rounded: dict[tuple[str, int], Tensor] = {}
        self._outcomes: dict[tuple[tuple[int, ...], tuple[int, ...]], Outcome] = {}

    def measure(self, assignment: Assignment) -> Outcome:
        """Run the network at these widths; each assignment is run once and remembered."""
        key = (assignment.widths, assignment.group_act_bits or ())
        if key not in self._outcomes:
            self._outcomes[key] = self._run(assignment)
        return self._outcomes[key]

    @property
    def num_images(self) -> int:
        """Return how many images allocations are measured on."""
        return len(self._images)

    @cached_property
    def top1(self) -> float | None:
        """Measure the float network: per cent of the labels that it names; None without labels."""
        return self._percent_equal(self._expected.argmax(dim=1), self._labels)

    @cached_property
    def _expected(self) -> Tensor:
        return self._logits()

    def _run(self, assignment: Assignment) -> Outcome:
        expected = self._expected
        with self._weights(assignment.layer_bits()), self._activations(assignment):
            found = self._logits()
        classes = found.argmax(dim=1)
        agreement = self._percent_equal(classes, expected.argmax(dim=1))
        kl = kl_divergence(expected, found) / len(found)
        return Outcome(kl, agreement or 0.0, self._percent_equal(classes, self._labels))

    @torch.no_grad()
    def _logits(self) -> Tensor:
        module = self._probed.network.module
        return torch.cat([module(part) for part in self._images.split(self._probed.batch_size)])

    @staticmethod
    def _percent_equal(classes: Tensor, wanted: Tensor | None) -> float | None:
        return None if wanted is None else 100 * int((classes == wanted).sum()) / len(classes)

    def _weights(self, layer_bits: Mapping[str, int]) -> AbstractContextManager[None]:
        pairs = layer_bits.items()
        return self._probed.holding({layer: self._round(layer, width) for layer, width in pairs})

    def _round(self, layer: str, width: int) -> Tensor:
        if (layer, width) not in self._rounded:
            weight = self._probed.network.graph.layer_module(layer).weight
            self._rounded[layer, width] = round_weights(weight, [width])[0]
        return self._rounded[layer, width]

    @contextmanager
    def _activations(self, assignment: Assignment) -> Iterator[None]:
        probed = self._probed
        if assignment.group_act_bits is None or not probed.act_widths:
            yield
            return
        chosen = dict(zip(assignment.groups, assignment.activations, strict=True))
        columns = {
            site: probed.act_widths.index(max(chosen[probed.groups[g]] for g in groups))
            for site, groups in probed.sites.items()
        }
        fitted = probed.fitted
        with probed.watching(lambda site, values: fitted[site][columns[site]](values)):
            yield
