"""Diagonal Fisher information: ½ E[Σ g² (x − Q_b(x))²], what rounding costs in nats, nearly.

½ Δᵀ F Δ is the second-order expansion of the Kullback-Leibler divergence of the output (Theis et
al., arXiv:1801.05787, equation 12); off its diagonal E[g²] the Fisher information F is taken as
zero. Three passes' work, four with activations.
"""

from __future__ import annotations

from torch import Tensor

from mixed_bit.sensitivity.base import ProbedNetwork, Sensitivity
from mixed_bit.sensitivity.gradients import second_order


def measure(probed: ProbedNetwork) -> Sensitivity:
    """½ E[Σ g² (W − Q_b(W))²] over a group's layers, and the same of what they read."""
    return second_order(probed, _each_its_own)


def _each_its_own(squares: Tensor, errors: Tensor) -> Tensor:
    return (squares * errors).sum(dim=1)
