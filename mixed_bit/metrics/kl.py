"""Kullback-Leibler divergence of the output from the float network's, one group at a time.

KL(p ‖ q) in nats, p the float network's prediction and q that of the network in which one group's
weights (or one activation) are rounded to one width and nothing else is. What lies before that
group is computed once for all, so that only the rest of the network runs for every width. As many
of the images are used as keep all of that within the work of 40 forward passes, eight at least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from mixed_bit.metrics.subject import Prices, Subject, rounded_weights
from ompq.graph import Part, extract, part_of, parts_of
from ompq.metrics import kl_divergence

_PASSES, _FEWEST_IMAGES = 40, 8


@dataclass
class _Trial:
    """One cell of a table, and the change of the network that it prices."""

    table: np.ndarray
    row: int
    column: int
    change: Callable[[], AbstractContextManager[None]]


@dataclass
class _Stage:
    """A part of the network, the whole rest that begins with it, and what is tried there."""

    part: Part
    run: GraphModule
    rest: Part
    run_rest: GraphModule
    trials: list[_Trial] = field(default_factory=list)


@torch.no_grad()
def price(subject: Subject) -> Prices:
    """KL(float ‖ rounded) per image, for every group and width and everything they read."""
    weights = np.zeros((len(subject.groups), len(subject.widths)))
    sites = list(subject.sites)
    activations = np.zeros((len(sites), len(subject.act_widths)))
    stages = _stages(subject)
    _try_weights(subject, stages, weights)
    _try_activations(subject, stages, sites, activations)
    work = sum(len(stage.trials) * subject.macs(stage.rest.layers) for stage in stages)
    passes = 2 + work / subject.macs()
    affordable = int(_PASSES * len(subject.images) / passes)
    count = min(len(subject.images), max(affordable, _FEWEST_IMAGES))
    for images in subject.images[:count].split(subject.batch_size):
        _run(subject, stages, images)
    return Prices(
        weights=weights / count,
        activations=subject.per_group(
            dict(zip(sites, (activations / count).tolist(), strict=True))
        ),
        log_scale=np.zeros(len(subject.groups)),
        passes=passes * count / len(subject.images),
    )


def _stages(subject: Subject) -> list[_Stage]:
    graph, module = subject.network.graph, subject.network.module
    parts = parts_of(graph, "layer")
    stages = []
    for index, part in enumerate(parts):
        rest = part_of(graph, [name for later in parts[index:] for name in later.nodes])
        stages.append(_Stage(part, extract(module, part), rest, extract(module, rest)))
    return stages


def _try_weights(subject: Subject, stages: list[_Stage], table: np.ndarray) -> None:
    for row, group in enumerate(subject.groups):
        stage = next(s for s in stages if set(s.part.layers) & set(group.layers))
        for column, width in enumerate(subject.widths):
            change = partial(_rounded, subject, group.layers, width)
            stage.trials.append(_Trial(table, row, column, change))


def _try_activations(
    subject: Subject, stages: list[_Stage], sites: Sequence[str], table: np.ndarray
) -> None:
    nodes = subject.network.calls()
    for row, site in enumerate(sites):
        stage = next(s for s in stages if nodes[site] in s.part.nodes)
        for column in range(len(subject.act_widths)):
            change = partial(_quantized, subject, site, column)
            stage.trials.append(_Trial(table, row, column, change))


def _rounded(subject: Subject, layers: Sequence[str], width: int) -> AbstractContextManager[None]:
    """The layers' weights rounded while the body runs."""
    weights = {layer: subject.network.graph.layer_module(layer).weight for layer in layers}
    return subject.holding({n: rounded_weights(w, [width])[0] for n, w in weights.items()})


@contextmanager
def _quantized(subject: Subject, site: str, column: int) -> Iterator[None]:
    """One value quantized while the body runs."""
    quantizer = subject.fitted[site][column]
    with subject.watching(lambda name, values: quantizer(values) if name == site else None):
        yield


def _run(subject: Subject, stages: list[_Stage], images: Tensor) -> None:
    """Add every trial's divergence, summed over `images`, to its cell."""
    expected = subject.network.module(images)
    (entry,) = stages[0].rest.inputs
    values = {entry: images}
    for stage in stages:
        values = {name: values[name] for name in stage.rest.inputs}
        for trial in stage.trials:
            # Copies, for networks that compute in place.
            inputs = [value.clone() for value in values.values()]
            with trial.change():
                (logits,) = stage.run_rest(*inputs)
            trial.table[trial.row, trial.column] += kl_divergence(expected, logits)
        outputs = stage.run(*(values[name].clone() for name in stage.part.inputs))
        values.update(zip(stage.part.outputs, outputs, strict=True))
