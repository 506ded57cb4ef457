"""Every metric measures networks of every kind, and finds what rounding really does to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kinds import KINDS, build_kind, conv, draw_images

from mixed_bit import SearchSettings, search
from mixed_bit.sensitivity import METRICS
from mixed_bit.sensitivity.base import round_weights
from ompq.cost import float_size_mb
from ompq.errors import OmpqError
from ompq.evaluation import kl_divergence
from ompq.graph import fold_batch_norm, trace_for

IMAGES = draw_images(16)


@pytest.mark.parametrize("kind", KINDS)
def test_every_metric_measures_every_kind(kind: str) -> None:
    graph = trace_for(build_kind(kind), IMAGES)
    for metric in METRICS:
        acts = () if metric == "orm" else (4, 8)
        settings = SearchSettings(
            "PTQ", metric=metric, bops_g=1.0, candidate_bits=(2, 8), candidate_act_bits=acts
        )
        found = search(graph, IMAGES, settings)
        assert found.allocation.optimal
        assert np.isfinite(found.sensitivity.weights).all()
        assert np.isfinite(found.sensitivity.activations).all()


@pytest.mark.parametrize("kind", ["pieces", "windows", "positions", "tied weights"])
def test_the_divergence_is_that_of_the_network_with_one_group_rounded(kind: str) -> None:
    network = build_kind(kind)
    settings = SearchSettings("PTQ", size_mb=1.0, metric="kl", candidate_bits=(2,))
    found = search(network, IMAGES, settings)
    graph = found.problem.graph
    for group, row in zip(graph.groups, found.sensitivity.weights, strict=True):
        rounded = fold_batch_norm(graph)
        with torch.inference_mode():
            for layer in group.layers:
                weight = graph.layer_module(layer).weight
                rounded.layer_module(layer).weight.copy_(round_weights(weight, [2])[0])
            exact = kl_divergence(network(IMAGES), rounded.module(IMAGES)) / len(IMAGES)
        assert row[0] == pytest.approx(exact, rel=1e-3, abs=1e-7)


def test_the_size_counts_what_stays_in_float() -> None:
    network = build_kind("computed weight")
    graph = trace_for(network, IMAGES)
    whole = sum(parameter.numel() for parameter in network.parameters())
    assert float_size_mb(graph.groups) == pytest.approx(4 * whole / 2**20)
    settings = SearchSettings("PTQ", size_mb=1.0, candidate_bits=(2,))
    assignment = search(graph, IMAGES, settings).assignment
    rest = network.kernel.numel()
    assert assignment.size_mb == pytest.approx((4 * rest + 2 * (whole - rest) / 8) / 2**20)


@pytest.mark.parametrize("metric", METRICS)
def test_channels_may_lie_last_in_memory(metric: str) -> None:
    network = build_kind("pieces")
    settings = SearchSettings("PTQ", size_mb=1.0, metric=metric, candidate_bits=(2, 8))
    usual = search(network, IMAGES, settings).sensitivity.weights
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = IMAGES.to(memory_format=torch.channels_last)
    found = search(network, images, settings).sensitivity.weights
    np.testing.assert_allclose(found, usual, rtol=1e-2)


def test_logits_of_every_pixel_have_no_metric_by_labels() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(conv(3, 8), torch.nn.ReLU(), conv(8, 5))
    for metric in METRICS:
        settings = SearchSettings("PTQ", size_mb=1.0, metric=metric)
        if METRICS[metric].uses_labels:
            with pytest.raises(OmpqError, match="gives 5×16×16 values"):
                search(network, IMAGES, settings)
        else:
            assert search(network, IMAGES, settings).allocation.optimal
