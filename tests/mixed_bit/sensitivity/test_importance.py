"""γ, θ and c against the formulas, at every β."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixed_bit.sensitivity.importance import (
    compute_gamma,
    compute_log_importance,
    compute_log_theta,
)


def test_gamma_leaves_the_diagonal_out() -> None:
    matrix = np.array([[1.0, 0.5, 0.25], [0.5, 1.0, 0.125], [0.25, 0.125, 1.0]])
    np.testing.assert_allclose(compute_gamma(matrix), [0.75, 0.625, 0.375])


@given(st.lists(st.floats(0, 5), min_size=1, max_size=20), st.floats(0, 20))
def test_importance_is_the_mean_of_theta_from_a_group_on(gammas: list[float], beta: float) -> None:
    thetas = [math.exp(-beta * value) for value in gammas]
    expected = [sum(thetas[i:]) / len(thetas[i:]) for i in range(len(thetas))]
    found = np.exp(compute_log_importance(compute_log_theta(np.array(gammas), beta)))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_differences_survive_a_tiny_beta() -> None:
    gammas = np.array([10.0, 12.0, 11.0, 9.0])
    found = compute_log_importance(compute_log_theta(gammas, 1e-9))
    expected = [-1e-9 * gammas[i:].mean() for i in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_nothing_underflows_with_a_large_beta() -> None:
    gammas = np.array([30.0, 10.0, 40.0])
    found = compute_log_importance(compute_log_theta(gammas, 100.0))
    thetas = [-3000.0, -1000.0, -4000.0]
    assert found[1] == pytest.approx(thetas[1] - math.log(2))
    assert found[2] == thetas[2]
    assert Fraction(found[0]) < Fraction(found[1])
