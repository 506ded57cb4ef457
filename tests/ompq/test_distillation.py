"""The loss of distillation is that of its formula."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ompq.distillation import distillation_loss


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 100), st.floats(0.5, 8))
def test_the_divergence_is_that_of_the_formula(
    count: int, classes: int, seed: int, temperature: float
) -> None:
    rng = np.random.default_rng(seed)
    logits, taught = rng.normal(scale=3, size=(2, count, classes))
    p, q = (
        np.exp(v) / np.exp(v).sum(1, keepdims=True)
        for v in (taught / temperature, logits / temperature)
    )
    expected = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    found = distillation_loss(torch.tensor(logits), torch.tensor(taught), temperature)
    assert math.isclose(float(found), expected, rel_tol=1e-9, abs_tol=1e-12)
