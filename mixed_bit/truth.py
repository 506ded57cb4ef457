"""What an allocation really does to the output: the network with all its weights rounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mixed_bit.metrics import Subject
from mixed_bit.metrics.subject import rounded_weights
from ompq.bitconfig import Assignment
from ompq.metrics import kl_divergence


@dataclass(frozen=True)
class Outcome:
    """Of an allocation on some images.

    `kl` is the divergence KL(float ‖ rounded) per image in nats; `agreement` how often both name
    the same class, and `top1` how often that is the label, in per cent (None without labels).
    """

    kl: float
    agreement: float
    top1: float | None


class Truth:
    """Measures allocations by running them; scales by L_2.4 search, rounding to nearest.

    Args:
        subject: the network. Its activations are rounded too where an assignment chooses among the
            subject's `act_widths`; else they stay in float.
        images: n × channels × height × width, on its device.
        labels: n, −1 or None where there are none.
    """

    def __init__(self, subject: Subject, images: Tensor, labels: Tensor | None = None) -> None:
        self._subject, self._images = subject, images
        self._labels = labels if labels is not None and bool((labels >= 0).all()) else None
        self._rounded: dict[tuple[str, int], Tensor] = {}
        self._outcomes: dict[tuple[tuple[int, ...], tuple[int, ...]], Outcome] = {}

    def outcome(self, assignment: Assignment) -> Outcome:
        """Measured once per assignment."""
        key = (assignment.widths, assignment.group_act_bits or ())
        if key not in self._outcomes:
            self._outcomes[key] = self._measure(assignment)
        return self._outcomes[key]

    @cached_property
    def top1(self) -> float | None:
        """Of the float network, in per cent; None without labels."""
        return self._share(self._expected.argmax(dim=1), self._labels)

    @cached_property
    def _expected(self) -> Tensor:
        return self._logits()

    def _measure(self, assignment: Assignment) -> Outcome:
        expected = self._expected
        with self._weights(assignment.layer_bits()), self._activations(assignment):
            found = self._logits()
        classes = found.argmax(dim=1)
        agreement = self._share(classes, expected.argmax(dim=1))
        kl = kl_divergence(expected, found) / len(found)
        return Outcome(kl, agreement or 0.0, self._share(classes, self._labels))

    @torch.no_grad()
    def _logits(self) -> Tensor:
        module = self._subject.network.module
        return torch.cat([module(part) for part in self._images.split(self._subject.batch_size)])

    @staticmethod
    def _share(classes: Tensor, wanted: Tensor | None) -> float | None:
        return None if wanted is None else 100 * int((classes == wanted).sum()) / len(classes)

    def _weights(self, layer_bits: Mapping[str, int]) -> AbstractContextManager[None]:
        pairs = layer_bits.items()
        return self._subject.holding({layer: self._round(layer, width) for layer, width in pairs})

    def _round(self, layer: str, width: int) -> Tensor:
        if (layer, width) not in self._rounded:
            weight = self._subject.network.graph.layer_module(layer).weight
            self._rounded[layer, width] = rounded_weights(weight, [width])[0]
        return self._rounded[layer, width]

    @contextmanager
    def _activations(self, assignment: Assignment) -> Iterator[None]:
        subject = self._subject
        if assignment.group_act_bits is None or not subject.act_widths:
            yield
            return
        chosen = dict(zip(assignment.groups, assignment.activations, strict=True))
        columns = {
            site: subject.act_widths.index(max(chosen[subject.groups[g]] for g in groups))
            for site, groups in subject.sites.items()
        }
        fitted = subject.fitted
        with subject.watching(lambda site, values: fitted[site][columns[site]](values)):
            yield
