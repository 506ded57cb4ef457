"""Weights rounded to nearest: the baseline that reconstruction and training start from."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from ompq.errors import OmpqError
from ompq.quantizers.affine import fake_quantize
from ompq.quantizers.scale import lp_scale


@torch.no_grad()
def round_weights(network: nn.Module, layer_bits: Mapping[str, int]) -> nn.Module:
    """A copy of `network` whose layers hold weights rounded to their width.

    Scales are per channel, by L_2.4 search; a batch norm after a layer only rescales its channels,
    so that folding it first would give the same network.

    Args:
        network: any module.
        layer_bits: layer name → width; other layers stay as they are.

    Raises:
        OmpqError: the network has no layer of a given name.
    """
    rounded = copy.deepcopy(network)
    modules = dict(rounded.named_modules())
    for name, bits in layer_bits.items():
        if not hasattr(modules.get(name), "weight"):
            raise OmpqError(f"the network has no layer {name} to quantize")
        weight = modules[name].weight
        weight.copy_(fake_quantize(weight, lp_scale(weight, bits)))
    return rounded
