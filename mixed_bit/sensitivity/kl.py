"""Kullback-Leibler divergence of the output from the float network's, one group at a time.

KL(p ‖ q) in nats, p the float network's prediction and q that of the network in which one group's
weights (or one activation) are rounded to one width and nothing else is. What lies before that
group is computed once for all, so that only the rest of the network runs for every width. As many
of the images are used as keep all of that within the work of 40 forward passes, eight at least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule

from mixed_bit.sensitivity.base import ProbedNetwork, Sensitivity, round_weights
from ompq.evaluation import kl_divergence
from ompq.graph import Subgraph, extract_subgraph, make_subgraph, split_into_subgraphs

# Work that the measurement may take, in forward passes of all images.
_PASSES = 40
# Fewer images would tell little, whatever the work.
_FEWEST_IMAGES = 8


@dataclass(frozen=True)
class _Stage:
    """A subgraph of one layer call, and the rest of the network that begins with it.

    Attributes:
        subgraph: Nodes of the layer call and what follows it up to the next.
        run: Network that computes them.
        rest: Nodes of the subgraph and of all later ones.
        run_rest: Network that computes these, up to the output.
    """

    subgraph: Subgraph
    run: GraphModule
    rest: Subgraph
    run_rest: GraphModule


@dataclass(frozen=True)
class _Probe:
    """A change of the network whose effect on the output is measured.

    Attributes:
        stage: Index of the first stage that the change touches.
        change: Makes a context manager that changes the network while its body runs.
    """

    stage: int
    change: Callable[[], AbstractContextManager[None]]


@torch.no_grad()
def measure(probed: ProbedNetwork) -> Sensitivity:
    """Measure KL(float ‖ rounded) per image, for every group and width and everything it reads."""
    stages = _build_stages(probed)
    on_weights = _plan_weight_probes(probed, stages)
    probes = [*on_weights, *_plan_activation_probes(probed, stages)]
    work = sum(probed.count_macs(stages[probe.stage].rest.layers) for probe in probes)
    # The two passes beside the probes: the float network's output, and the stages one by one.
    passes = 2 + work / probed.count_macs()
    affordable = int(_PASSES * len(probed.images) / passes)
    count = min(len(probed.images), max(affordable, _FEWEST_IMAGES))
    total = np.zeros(len(probes))
    for images in probed.images[:count].split(probed.batch_size):
        total += _sum_divergences(probed, stages, probes, images)
    weights, activations = np.split(total / count, [len(on_weights)])
    by_site = activations.reshape(len(probed.sites), len(probed.act_widths)).tolist()
    return Sensitivity(
        weights=weights.reshape(len(probed.groups), len(probed.widths)),
        activations=probed.spread_over_groups(dict(zip(probed.sites, by_site, strict=True))),
        log_scale=np.zeros(len(probed.groups)),
        forward_passes=passes * count / len(probed.images),
    )


def _build_stages(probed: ProbedNetwork) -> list[_Stage]:
    graph, module = probed.network.graph, probed.network.module
    subgraphs = split_into_subgraphs(graph, "layer")
    stages = []
    for index, subgraph in enumerate(subgraphs):
        rest = make_subgraph(graph, [name for later in subgraphs[index:] for name in later.nodes])
        run, run_rest = extract_subgraph(module, subgraph), extract_subgraph(module, rest)
        stages.append(_Stage(subgraph, run, rest, run_rest))
    return stages


def _plan_weight_probes(probed: ProbedNetwork, stages: Sequence[_Stage]) -> list[_Probe]:
    """Plan one probe per group and weight width, in this order."""
    probes = []
    for group in probed.groups:
        # The earliest of tied layers: what precedes it is what no change of the group reaches.
        layers = set(group.layers)
        first = next(i for i, stage in enumerate(stages) if layers & set(stage.subgraph.layers))
        for width in probed.widths:
            probes.append(_Probe(first, partial(_rounding, probed, group.layers, width)))
    return probes


def _plan_activation_probes(probed: ProbedNetwork, stages: Sequence[_Stage]) -> list[_Probe]:
    """Plan one probe per site and activation width, in this order."""
    nodes = probed.network.calls()
    probes = []
    for site in probed.sites:
        first = next(i for i, stage in enumerate(stages) if nodes[site] in stage.subgraph.nodes)
        for column in range(len(probed.act_widths)):
            probes.append(_Probe(first, partial(_quantizing, probed, site, column)))
    return probes


def _rounding(
    probed: ProbedNetwork, layers: Sequence[str], width: int
) -> AbstractContextManager[None]:
    """Round the weights of some layers to one width while the body runs."""
    weights = {layer: probed.network.graph.layer_module(layer).weight for layer in layers}
    return probed.holding({n: round_weights(w, [width])[0] for n, w in weights.items()})


@contextmanager
def _quantizing(probed: ProbedNetwork, site: str, column: int) -> Iterator[None]:
    """Quantize one value to the width of one column while the body runs."""
    quantizer = probed.fitted[site][column]
    with probed.watching(lambda name, values: quantizer(values) if name == site else None):
        yield


def _sum_divergences(
    probed: ProbedNetwork, stages: Sequence[_Stage], probes: Sequence[_Probe], images: Tensor
) -> NDArray[np.float64]:
    """Sum the divergence that each probe causes over some images, one value per probe."""
    found = np.zeros(len(probes))
    expected = probed.network.module(images)
    (entry,) = stages[0].rest.inputs
    values = {entry: images}
    for index, stage in enumerate(stages):
        # What no later stage reads is let go: a deep network's features would not fit.
        values = {name: values[name] for name in stage.rest.inputs}
        for place, probe in enumerate(probes):
            if probe.stage != index:
                continue
            # Copies, for networks that compute in place.
            inputs = [value.clone() for value in values.values()]
            with probe.change():
                (logits,) = stage.run_rest(*inputs)
            found[place] = kl_divergence(expected, logits)
        outputs = stage.run(*(values[name].clone() for name in stage.subgraph.inputs))
        values.update(zip(stage.subgraph.outputs, outputs, strict=True))
    return found
