"""From the orthogonality matrix to the importance of every group, in log space.

γ_i = Σ_{j≠i} ORM_ij, θ_i = exp(−β γ_i) and c_i = (1/(L−i+1)) Σ_{j=i..L} θ_j; OMPQ
(arXiv:2109.07865), eq. 5 to 7. With β = 100, θ is far below the smallest float64, its logarithm
is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Importance:
    """γ, ln θ and ln c of every group, L values each."""

    gamma: FloatArray
    log_theta: FloatArray
    log_importance: FloatArray

    @classmethod
    def of(cls, orm: FloatArray, beta: float) -> Importance:
        """From the orthogonality matrix, L × L."""
        gammas = gamma(orm)
        log_thetas = log_theta(gammas, beta)
        return cls(gammas, log_thetas, log_importance(log_thetas))


def gamma(orm: FloatArray) -> FloatArray:
    """γ: how much each feature shares with all others.

    Args:
        orm: L × L with 1 on the diagonal.

    Returns:
        L values from 0 to L − 1.
    """
    return np.asarray(orm.sum(axis=1) - orm.diagonal(), dtype=np.float64)


def log_theta(gammas: FloatArray, beta: float) -> FloatArray:
    """ln θ = −β γ, L values."""
    return -beta * gammas


def log_importance(log_thetas: FloatArray) -> FloatArray:
    """ln c: logarithm of the mean of θ over a group and all that follow it, L values.

    Exact to rounding for any β: with β near zero all θ are nearly equal and only their differences
    decide, hence expm1 and log1p; with large β the largest θ of each suffix is taken out first.
    """
    values = []
    for start in range(len(log_thetas)):
        suffix = log_thetas[start:]
        largest = suffix.max()
        values.append(largest + np.log1p(np.expm1(suffix - largest).mean()))
    return np.array(values, dtype=np.float64)
