"""Squared gradients of the log-likelihood, and what rounding errors they weigh.

g is the gradient of the log-likelihood of one image's label. Labels are drawn from the network's
own prediction, so that E[g gᵀ] is the Fisher information, which is the Hessian of the divergence
from the network's own output. Given labels make it the empirical Fisher information.

One forward and one backward pass, three passes' work, in batches of a few images: gradients of
drawn labels are independent and of zero mean, so that the square of their sum has the expectation
of the sum of their squares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mixed_bit.metrics.subject import Prices, Subject, rounded_weights
from ompq.metrics import drawn_labels

# (squared gradients, squared errors), rows × n each → what each row's rounding costs.
Weigh = Callable[[Tensor, Tensor], Tensor]

_IMAGES = 2


def second_order(subject: Subject, weigh: Weigh) -> Prices:
    """½ E[weigh(g², (x − Q_b(x))²)] of the weights of a group's layers, and of what they read.

    Args:
        subject: what to price.
        weigh: given one row for a layer's weights (g² summed over the images), or one row for each
            image's activations.
    """
    squares, of_site = _collect(subject, weigh)

    @torch.no_grad()
    def of_layer(layer: str) -> list[float]:
        weight = subject.network.graph.layer_module(layer).weight
        return [
            float(weigh(squares[layer].view(1, -1), (weight - other).square().view(1, -1)))
            for other in rounded_weights(weight, subject.widths)
        ]

    half = 0.5 / len(subject.images)
    return Prices(
        weights=half * subject.sum_over_layers(of_layer),
        activations=half * subject.per_group(of_site),
        log_scale=np.zeros(len(subject.groups)),
        passes=4.0 if subject.act_widths else 3.0,
    )


def _collect(subject: Subject, weigh: Weigh) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """Per layer Σ g² of its weights; per site its price at every width, both over all images."""
    generator = torch.Generator().manual_seed(subject.seed)
    fitted = subject.fitted if subject.sites else {}
    of_site = {site: [0.0] * len(subject.act_widths) for site in subject.sites}

    def read(site: str, values: Tensor) -> Tensor:
        with torch.no_grad():
            errors = [(values - q(values)).square().flatten(1) for q in fitted[site]]

        def add(gradient: Tensor) -> None:
            for index, error in enumerate(errors):
                of_site[site][index] += float(weigh(gradient.square().flatten(1), error).sum())

        if not values.requires_grad:
            values = values.detach().requires_grad_()
        values.register_hook(add)
        # A copy goes on, so that in-place operations leave the watched value alone.
        return values.clone()

    size = 1 if subject.labels is not None else _IMAGES
    with _squared_gradients(subject) as squares, subject.watching(read):
        for images, labels in subject.split(size):
            logits = subject.network.module(images)
            if labels is None:
                labels = drawn_labels(logits, generator)
            cross_entropy(logits, labels, reduction="sum").backward()
    return squares, of_site


@contextmanager
def _squared_gradients(subject: Subject) -> Iterator[dict[str, Tensor]]:
    """Layer → the sum of its weight's squared gradients over the backward passes of the body."""
    squares: dict[str, Tensor] = {}
    handles = []
    graph = subject.network.graph

    def add(layer: str, weight: Tensor) -> None:
        if weight.grad is not None:
            squares[layer].addcmul_(weight.grad, weight.grad)
            weight.grad = None

    for layer in (layer for group in subject.groups for layer in group.layers):
        weight = graph.layer_module(layer).weight
        squares[layer] = torch.zeros_like(weight)
        weight.requires_grad_(True)
        handles.append(
            weight.register_post_accumulate_grad_hook(lambda w, layer=layer: add(layer, w))
        )
    try:
        yield squares
    finally:
        for handle in handles:
            handle.remove()
        for layer in squares:
            graph.layer_module(layer).weight.requires_grad_(False)
