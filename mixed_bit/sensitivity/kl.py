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

from mixed_bit.sensitivity.base import ProbedNetwork, Sensitivity, round_weights
from ompq.evaluation import kl_divergence
from ompq.graph import Subgraph, extract_subgraph, make_subgraph, split_into_subgraphs

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

    part: Subgraph
    run: GraphModule
    rest: Subgraph
    run_rest: GraphModule
    trials: list[_Trial] = field(default_factory=list)


@torch.no_grad()
def measure(probed: ProbedNetwork) -> Sensitivity:
    """KL(float ‖ rounded) per image, for every group and width and everything they read."""
    weights = np.zeros((len(probed.groups), len(probed.widths)))
    sites = list(probed.sites)
    activations = np.zeros((len(sites), len(probed.act_widths)))
    stages = _stages(probed)
    _try_weights(probed, stages, weights)
    _try_activations(probed, stages, sites, activations)
    work = sum(len(stage.trials) * probed.macs(stage.rest.layers) for stage in stages)
    passes = 2 + work / probed.macs()
    affordable = int(_PASSES * len(probed.images) / passes)
    count = min(len(probed.images), max(affordable, _FEWEST_IMAGES))
    for images in probed.images[:count].split(probed.batch_size):
        _run(probed, stages, images)
    return Sensitivity(
        weights=weights / count,
        activations=probed.per_group(dict(zip(sites, (activations / count).tolist(), strict=True))),
        log_scale=np.zeros(len(probed.groups)),
        forward_passes=passes * count / len(probed.images),
    )


def _stages(probed: ProbedNetwork) -> list[_Stage]:
    graph, module = probed.network.graph, probed.network.module
    parts = split_into_subgraphs(graph, "layer")
    stages = []
    for index, part in enumerate(parts):
        rest = make_subgraph(graph, [name for later in parts[index:] for name in later.nodes])
        stages.append(
            _Stage(part, extract_subgraph(module, part), rest, extract_subgraph(module, rest))
        )
    return stages


def _try_weights(probed: ProbedNetwork, stages: list[_Stage], table: np.ndarray) -> None:
    for row, group in enumerate(probed.groups):
        stage = next(s for s in stages if set(s.part.layers) & set(group.layers))
        for column, width in enumerate(probed.widths):
            change = partial(_rounded, probed, group.layers, width)
            stage.trials.append(_Trial(table, row, column, change))


def _try_activations(
    probed: ProbedNetwork, stages: list[_Stage], sites: Sequence[str], table: np.ndarray
) -> None:
    nodes = probed.network.calls()
    for row, site in enumerate(sites):
        stage = next(s for s in stages if nodes[site] in s.part.nodes)
        for column in range(len(probed.act_widths)):
            change = partial(_quantized, probed, site, column)
            stage.trials.append(_Trial(table, row, column, change))


def _rounded(
    probed: ProbedNetwork, layers: Sequence[str], width: int
) -> AbstractContextManager[None]:
    """The layers' weights rounded while the body runs."""
    weights = {layer: probed.network.graph.layer_module(layer).weight for layer in layers}
    return probed.holding({n: round_weights(w, [width])[0] for n, w in weights.items()})


@contextmanager
def _quantized(probed: ProbedNetwork, site: str, column: int) -> Iterator[None]:
    """One value quantized while the body runs."""
    quantizer = probed.fitted[site][column]
    with probed.watching(lambda name, values: quantizer(values) if name == site else None):
        yield


def _run(probed: ProbedNetwork, stages: list[_Stage], images: Tensor) -> None:
    """Add every trial's divergence, summed over `images`, to its cell."""
    expected = probed.network.module(images)
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
