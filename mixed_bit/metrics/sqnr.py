"""Relative error of rounding: ‖x − Q_b(x)‖² / ‖x‖², the inverse of the SQNR.

The weights' part needs no image; the activations' takes two forward passes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mixed_bit.metrics.subject import Prices, Subject, rounded_weights


@torch.no_grad()
def price(subject: Subject) -> Prices:
    """Σ ‖W − Q_b(W)‖² / ‖W‖² over a group's layers; ‖x − Q_a(x)‖² / ‖x‖² of what they read."""

    def of_layer(layer: str) -> list[float]:
        weight = subject.network.graph.layer_module(layer).weight
        return _relative_errors(weight, rounded_weights(weight, subject.widths))

    return Prices(
        weights=subject.sum_over_layers(of_layer),
        activations=subject.per_group(_of_sites(subject)),
        log_scale=np.zeros(len(subject.groups)),
        passes=2.0 if subject.act_widths else 0.0,
    )


def _of_sites(subject: Subject) -> dict[str, list[float]]:
    """Mean over the batches, weighted by their images."""
    found: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(subject.act_widths))
    quantizers = subject.fitted if subject.sites else {}

    def read(site: str, values: Tensor) -> None:
        share = len(values) / len(subject.images)
        errors = _relative_errors(values, [quantizer(values) for quantizer in quantizers[site]])
        found[site] = [a + share * b for a, b in zip(found[site], errors, strict=True)]

    if subject.sites:
        with subject.watching(read):
            for images, _ in subject.batches():
                subject.network.module(images)
    return found


def _relative_errors(values: Tensor, rounded: Sequence[Tensor]) -> list[float]:
    power = float(values.double().square().sum())
    if power == 0:
        return [0.0] * len(rounded)
    return [float((values - other).double().square().sum()) / power for other in rounded]
