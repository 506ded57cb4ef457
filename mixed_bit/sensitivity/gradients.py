"""Squared gradients of the log-likelihood, and what rounding errors they weigh.

g is the gradient of the log-likelihood of one image's label. Labels are drawn from the network's
own prediction, so that E[g gᵀ] is the Fisher information, which is the Hessian of the divergence
from the network's own output. Given labels make it the empirical Fisher information.

One forward and one backward pass, three passes' work, in batches of a few images: gradients of
drawn labels are independent and of zero mean, so that the square of their sum has the expectation
of the sum of their squares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mixed_bit.sensitivity.base import ProbedNetwork, Sensitivity, round_weights
from ompq.errors import UNSUITED_ERRORS, OmpqError
from ompq.evaluation import draw_labels

# (squared gradients, squared errors), rows × n each → what each row's rounding costs.
Weigh = Callable[[Tensor, Tensor], Tensor]

# Images of one backward pass where labels are drawn: more would be faster, but the square of a
# longer sum has more variance.
_IMAGES = 2


def measure_second_order(probed: ProbedNetwork, weigh: Weigh) -> Sensitivity:
    """Measure ½ E[weigh(g², (x − Q_b(x))²)] of every group's weights and of what it reads.

    Args:
        probed: Network, groups and widths to measure.
        weigh: Function of squared gradients and squared errors. It gets one row for a layer's
            weights (g² summed over the images), or one row for each image's activations.

    Raises:
        OmpqError: The network's gradients cannot be computed, or reach no weight.
    """
    try:
        squares, of_site = _collect(probed, weigh)
    except UNSUITED_ERRORS as error:
        reason = (str(error) or type(error).__name__).split("\n")[0][:160]
        raise OmpqError(
            f"the network's gradients cannot be computed ({reason}); choose another `metric`"
        ) from error
    unreached = tuple(layer for layer in _list_owners(probed) if layer not in squares)

    @torch.no_grad()
    def measure_layer(layer: str) -> list[float]:
        if layer not in squares:
            return [0.0] * len(probed.widths)
        weight = probed.network.graph.layer_module(layer).weight
        return [
            float(weigh(squares[layer].reshape(1, -1), (weight - other).square().reshape(1, -1)))
            for other in round_weights(weight, probed.widths)
        ]

    half = 0.5 / len(probed.images)
    return Sensitivity(
        weights=half * probed.sum_over_layers(measure_layer),
        activations=half * probed.spread_over_groups(of_site),
        log_scale=np.zeros(len(probed.groups)),
        forward_passes=4.0 if probed.act_widths else 3.0,
        unreached=unreached,
    )


def _list_owners(probed: ProbedNetwork) -> list[str]:
    """List the layers of the groups; of those that share a weight, which has one gradient, one."""
    owners = probed.network.graph.weight_owners()
    return list({owners[layer]: None for group in probed.groups for layer in group.layers})


def _collect(
    probed: ProbedNetwork, weigh: Weigh
) -> tuple[Mapping[str, Tensor], dict[str, list[float]]]:
    """Sum over all images what the two tables of sensitivities need.

    Returns:
        Layer → Σ g² of its weights, of the layers that a gradient reaches, and site → its weighed
        errors at every activation width.
    """
    generator = torch.Generator().manual_seed(probed.seed)
    fitted = probed.fitted if probed.sites else {}
    of_site = {site: [0.0] * len(probed.act_widths) for site in probed.sites}

    def read(site: str, values: Tensor) -> Tensor:
        with torch.no_grad():
            squared = [(values - quantizer(values)).square() for quantizer in fitted[site]]
            errors = [probed.split_images(site, error).flatten(1) for error in squared]

        def add(gradient: Tensor) -> None:
            weights = probed.split_images(site, gradient.square()).flatten(1)
            for index, error in enumerate(errors):
                of_site[site][index] += float(weigh(weights, error).sum())

        # Before the first measured layer nothing asks for a gradient yet.
        if not values.requires_grad:
            values = values.detach().requires_grad_()
        values.register_hook(add)
        # A copy goes on, so that in-place operations leave the watched value alone.
        return values.clone()

    # Gradients of given labels are not of zero mean: the square of their sum would be another one.
    size = 1 if probed.labels is not None else _IMAGES
    # A caller may have switched gradients off.
    with torch.enable_grad(), _collecting_squares(probed) as squares, probed.watching(read):
        for images, labels in probed.split(size):
            logits = probed.network.module(images)
            if labels is None:
                labels = draw_labels(logits, generator)
            cross_entropy(logits, labels, reduction="sum").backward()
    return squares, of_site


@contextmanager
def _collecting_squares(probed: ProbedNetwork) -> Iterator[Mapping[str, Tensor]]:
    """Sum up each layer's squared weight gradients over the backward passes of the body.

    A layer that no gradient reaches is not among them.
    """
    squares: dict[str, Tensor] = {}
    handles = []
    graph = probed.network.graph

    def add(layer: str, weight: Tensor) -> None:
        if weight.grad is not None:
            if layer not in squares:
                squares[layer] = torch.zeros_like(weight)
            squares[layer].addcmul_(weight.grad, weight.grad)
            # Freed at once, so that no more than one layer's gradient is held.
            weight.grad = None

    weights = {layer: graph.layer_module(layer).weight for layer in _list_owners(probed)}
    for layer, weight in weights.items():
        weight.requires_grad_(True)
        handles.append(
            weight.register_post_accumulate_grad_hook(lambda w, layer=layer: add(layer, w))
        )
    try:
        yield squares
    finally:
        for handle in handles:
            handle.remove()
        for weight in weights.values():
            weight.requires_grad_(False)
            weight.grad = None
