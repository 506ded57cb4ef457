"""The first scales of an integer network: ranges seen on images, and where learned ones begin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ompq.integer.fake_quantizers import (
    FixedWeightFakeQuantizer,
    LearnedActivationFakeQuantizer,
    LearnedWeightFakeQuantizer,
)
from ompq.integer.network import IntegerNetwork
from ompq.quantizers import QuantParams, lp_scale
from ompq.quantizers.scale import sample_with_extremes

# Activations of as many bits lose little where the whole range is covered, and clip nothing.
_WIDE = 8


@torch.no_grad()
def calibrate(network: IntegerNetwork, batches: Iterable[Tensor], device: torch.device) -> None:
    """Give activations their first ranges; weights and batch norms stay as they are.

    Scales that will be learned at less than 8 bits start where the error is least on the first
    batch, instead of covering its range. The network is in evaluation mode afterwards.

    Args:
        network: Network whose activation fake quantizers observe the images.
        batches: Batches of calibration images, n × channels × height × width, normalised.
        device: Device that holds the network.
    """
    layers = list(network.layers().values())
    frozen = [layer.freeze_norm for layer in layers]
    network.module.eval()
    # Only what quantizes is in training mode: dropout stays off, and standalone batch norms keep
    # their statistics.
    for layer in layers:
        layer.freeze_norm = True
        layer.train()
    for requantizer in network.requantizers().values():
        requantizer.train()
    for operation in network.operations().values():
        # Itself alone: what it computes in float is in evaluation.
        operation.training = True
    first: Tensor | None = None
    for images in batches:
        if first is None:
            # A copy: a network may change what it is given in place.
            first = images.to(device).clone()
        network.module(images.to(device))
    if first is not None:
        _fit_learned_scales(network, first)
    for layer, was in zip(layers, frozen, strict=True):
        layer.freeze_norm = was
    network.module.eval()


def _fit_learned_scales(network: IntegerNetwork, images: Tensor) -> None:
    """Search the scales that will be learned, in the order in which the values are computed."""
    fitted = {
        requantizer.fake_quantizer: list[Tensor]()
        for requantizer in network.requantizers().values()
        if isinstance(requantizer.fake_quantizer, LearnedActivationFakeQuantizer)
        and requantizer.fake_quantizer.observing
        and requantizer.fake_quantizer.bits < _WIDE
    }

    def fit(quantizer: nn.Module, given: tuple[Any, ...]) -> None:
        if not isinstance(quantizer, LearnedActivationFakeQuantizer):
            raise TypeError(f"{type(quantizer).__name__} has no scale to learn")
        values, clip, _ = given
        values = values.float() if clip is None else values.float().clamp(*clip)
        # Of several values with one scale, each is fitted together with those before it.
        fitted[quantizer].append(sample_with_extremes(values))
        quantizer.fit(torch.cat(fitted[quantizer]))

    if not fitted:
        return
    hooks = [quantizer.register_forward_pre_hook(fit) for quantizer in fitted]
    for quantizer in fitted:
        quantizer.observing = False
    try:
        network.module(images)
    finally:
        for quantizer, hook in zip(fitted, hooks, strict=True):
            quantizer.observing = True
            hook.remove()


def start_learning_steps(network: IntegerNetwork, per_channel: bool) -> None:
    """Make step sizes parameters that are learned (LSQ), from scales that fit the weights.

    A scale that was fixed before (by post-training quantization) is where learning starts; any
    other starts where the error of the weight is least. Layers that share a weight share its step
    sizes. Activations stop observing ranges.

    Args:
        network: Calibrated network, changed in place.
        per_channel: Whether a weight gets one step size per output channel.
    """
    learned: dict[int, LearnedWeightFakeQuantizer] = {}
    for layer in network.layers().values():
        own = id(layer.layer.weight)
        if own not in learned:
            weight = layer.read_rounded_weight(per_channel)
            given = layer.fake_quantizer
            if isinstance(given, FixedWeightFakeQuantizer):
                params = given.compute_params(weight)
            else:
                params = lp_scale(weight, given.bits, symmetric=True, per_channel=per_channel)
            learned[own] = LearnedWeightFakeQuantizer(_wake_channels(params, weight))
        layer.fake_quantizer = learned[own]
    for requantizer in network.requantizers().values():
        if isinstance(requantizer.fake_quantizer, LearnedActivationFakeQuantizer):
            requantizer.fake_quantizer.observing = False


def _wake_channels(params: QuantParams, weight: Tensor) -> QuantParams:
    """Give channels whose weights are all zero a scale by which they can leave zero.

    Any scale fits them. The least one would clip what they learn, and learn nothing itself.
    """
    rows = weight.detach().flatten(1)
    dead = ~rows.any(dim=1)
    # What PyTorch's layers start with reaches as far.
    usual = rows.shape[1] ** -0.5 / params.high
    if not params.scale.dim():
        scale = params.scale.new_tensor(usual) if bool(dead.all()) else params.scale
    else:
        live = params.scale[~dead.to(params.scale.device)]
        usual = float(live.median()) if len(live) else usual
        scale = params.scale.masked_fill(dead.to(params.scale.device), usual)
    return QuantParams(scale, params.zero_point, params.low, params.high)
