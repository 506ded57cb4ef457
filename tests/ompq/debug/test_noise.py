"""Signal and noise agree with their definition."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ompq.debug.noise import Noise, count_dead_channels, measure_clipped_share


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(0, 100))
def test_batches_add_up_to_the_ratio_of_all(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    batches = [(rng.normal(size=n), rng.normal(size=n)) for n in sizes]
    noise = Noise()
    for exact, found in batches:
        noise.add(torch.tensor(exact), torch.tensor(found))
    exact, found = (np.concatenate(values) for values in zip(*batches, strict=True))
    expected = 10 * math.log10((exact**2).sum() / ((found - exact) ** 2).sum())
    assert noise.decibels is not None and math.isclose(noise.decibels, expected, abs_tol=1e-9)


def test_nothing_seen_nothing_lost_and_nothing_there() -> None:
    assert Noise().decibels is None
    same, empty = Noise(), Noise()
    same.add(torch.ones(3), torch.ones(3))
    empty.add(torch.zeros(3), torch.ones(3))
    assert same.decibels == math.inf and empty.decibels == -math.inf


def test_channels_and_values_are_counted() -> None:
    weight = torch.tensor([[0.4, 0.1], [0.01, -0.02], [0.0, 0.0]])
    assert count_dead_channels(weight, torch.round(weight / 0.2)) == 1
    x = torch.tensor([-0.9, -0.4, 0.0, 1.4, 3.4, 3.6, 8.0, 9.0])
    assert measure_clipped_share(x, torch.tensor(1.0), 0, 0, 3) == 4 / 8
    assert measure_clipped_share(x, torch.tensor(1.0), 1, 0, 15) == 0
