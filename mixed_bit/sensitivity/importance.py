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
    """What orthogonality says of every group.

    Attributes:
        gamma: γ, how much each group's feature shares with all others, L values.
        log_theta: ln θ, L values.
        log_importance: ln c, L values.
    """

    gamma: FloatArray
    log_theta: FloatArray
    log_importance: FloatArray

    @classmethod
    def of(cls, orm: FloatArray, beta: float) -> Importance:
        """Derive the importances from an orthogonality matrix.

        Args:
            orm: Orthogonality matrix, L × L with 1 on the diagonal.
            beta: β of θ = exp(−β γ).
        """
        gamma = compute_gamma(orm)
        log_theta = compute_log_theta(gamma, beta)
        return cls(gamma, log_theta, compute_log_importance(log_theta))


def compute_gamma(orm: FloatArray) -> FloatArray:
    """Add up how much each feature shares with all others, γ_i = Σ_{j≠i} ORM_ij.

    Args:
        orm: Orthogonality matrix, L × L with 1 on the diagonal.

    Returns:
        L values from 0 to L − 1.

    >>> compute_gamma(np.array([[1.0, 0.5, 0.25], [0.5, 1.0, 0.0], [0.25, 0.0, 1.0]]))
    array([0.75, 0.5 , 0.25])
    """
    return np.asarray(orm.sum(axis=1) - orm.diagonal(), dtype=np.float64)


def compute_log_theta(gamma: FloatArray, beta: float) -> FloatArray:
    """Compute ln θ = −β γ, L values.

    >>> compute_log_theta(np.array([0.5, 2.0]), beta=10.0)
    array([ -5., -20.])
    """
    return -beta * gamma


def compute_log_importance(log_theta: FloatArray) -> FloatArray:
    """Compute ln c, the logarithm of the mean of θ over a group and all that follow it.

    Exact to rounding for any β.

    Args:
        log_theta: ln θ, L values in execution order.

    Returns:
        L values.

    >>> np.exp(compute_log_importance(np.log([1.0, 3.0]))).round(6)
    array([2., 3.])
    >>> compute_log_importance(np.array([-5000.0, -5000.0]))
    array([-5000., -5000.])
    """
    values = []
    for start in range(len(log_theta)):
        suffix = log_theta[start:]
        # With large β every θ is below the smallest float64: the largest one is taken out first.
        # With β near zero all θ are nearly 1 and only their differences decide: hence expm1, log1p.
        largest = suffix.max()
        values.append(largest + np.log1p(np.expm1(suffix - largest).mean()))
    return np.array(values, dtype=np.float64)
