"""Diagonal Fisher information: ½ E[Σ g² (x − Q_b(x))²], what rounding costs in nats, nearly.

½ Δᵀ F Δ is the second-order expansion of the Kullback-Leibler divergence of the output (Theis et
al., arXiv:1801.05787, equation 12); off its diagonal E[g²] the Fisher information F is taken as
zero. Three passes' work, four with activations.
"""

from __future__ import annotations

from torch import Tensor

from mixed_bit.sensitivity.base import ProbedNetwork, Sensitivity
from mixed_bit.sensitivity.gradients import measure_second_order


def measure(probed: ProbedNetwork) -> Sensitivity:
    """Measure ½ E[Σ g² (x − Q_b(x))²] of the weights of each group, and of the values it reads."""
    return measure_second_order(probed, _weigh_each)


def _weigh_each(squares: Tensor, errors: Tensor) -> Tensor:
    return (squares * errors).sum(dim=1)
