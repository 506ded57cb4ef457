"""Relative error of rounding: ‖x − Q_b(x)‖² / ‖x‖², the inverse of the SQNR.

The weights' part needs no image; the activations' takes two forward passes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mixed_bit.sensitivity.base import ProbedNetwork, Sensitivity, round_weights


@torch.no_grad()
def measure(probed: ProbedNetwork) -> Sensitivity:
    """Σ ‖W − Q_b(W)‖² / ‖W‖² over a group's layers; ‖x − Q_a(x)‖² / ‖x‖² of what they read."""

    def of_layer(layer: str) -> list[float]:
        weight = probed.network.graph.layer_module(layer).weight
        return _relative_errors(weight, round_weights(weight, probed.widths))

    return Sensitivity(
        weights=probed.sum_over_layers(of_layer),
        activations=probed.per_group(_of_sites(probed)),
        log_scale=np.zeros(len(probed.groups)),
        forward_passes=2.0 if probed.act_widths else 0.0,
    )


def _of_sites(probed: ProbedNetwork) -> dict[str, list[float]]:
    """Mean over the batches, weighted by their images."""
    found: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(probed.act_widths))
    quantizers = probed.fitted if probed.sites else {}

    def read(site: str, values: Tensor) -> None:
        share = len(values) / len(probed.images)
        errors = _relative_errors(values, [quantizer(values) for quantizer in quantizers[site]])
        found[site] = [a + share * b for a, b in zip(found[site], errors, strict=True)]

    if probed.sites:
        with probed.watching(read):
            for images, _ in probed.batches():
                probed.network.module(images)
    return found


def _relative_errors(values: Tensor, rounded: Sequence[Tensor]) -> list[float]:
    power = float(values.double().square().sum())
    if power == 0:
        return [0.0] * len(rounded)
    return [float((values - other).double().square().sum()) / power for other in rounded]
