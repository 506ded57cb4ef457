"""Relative error of rounding: ‖x − Q_b(x)‖² / ‖x‖², the inverse of the SQNR.

The errors of weights need no image; those of activations take two forward passes.
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
    """Measure ‖x − Q_b(x)‖² / ‖x‖², summed over the layers of each group and over what it reads."""

    def measure_layer(layer: str) -> list[float]:
        weight = probed.network.graph.layer_module(layer).weight
        return _compute_relative_errors(weight, round_weights(weight, probed.widths))

    return Sensitivity(
        weights=probed.sum_over_layers(measure_layer),
        activations=probed.spread_over_groups(_measure_sites(probed)),
        log_scale=np.zeros(len(probed.groups)),
        forward_passes=2.0 if probed.act_widths else 0.0,
    )


def _measure_sites(probed: ProbedNetwork) -> dict[str, list[float]]:
    """Average the relative error of every site and width over the batches, by their images."""
    found: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(probed.act_widths))
    quantizers = probed.fitted if probed.sites else {}

    def read(site: str, values: Tensor) -> None:
        # Batches differ in size: the last one may hold fewer images.
        share = len(probed.split_images(site, values)) / len(probed.images)
        errors = _compute_relative_errors(
            values, [quantizer(values) for quantizer in quantizers[site]]
        )
        found[site] = [a + share * b for a, b in zip(found[site], errors, strict=True)]

    if probed.sites:
        with probed.watching(read):
            for images, _ in probed.batches():
                probed.network.module(images)
    return found


def _compute_relative_errors(values: Tensor, rounded: Sequence[Tensor]) -> list[float]:
    # In float64: the squares of tiny values would vanish in float32.
    power = float(values.double().square().sum())
    if power == 0:
        return [0.0] * len(rounded)
    return [float((values - other).double().square().sum()) / power for other in rounded]
