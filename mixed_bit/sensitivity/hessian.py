"""Mean trace of the Hessian: ½ · tr(H) / n · ‖x − Q_b(x)‖², HAWQ-V2 (arXiv:1911.03852), equation 7.

H is the Hessian of the divergence from the network's own output, with respect to one layer's n
weights or one image's n activations. There it is the Fisher information, so that its trace is
E[Σ g²]: one backward pass, where Hutchinson's method needs many passes and leaves negative traces
behind. Given labels make it that of the empirical Fisher information. Three passes' work, four
with activations.
"""

from __future__ import annotations

from torch import Tensor

from mixed_bit.sensitivity.base import ProbedNetwork, Sensitivity
from mixed_bit.sensitivity.gradients import measure_second_order


def measure(probed: ProbedNetwork) -> Sensitivity:
    """Measure ½ · mean trace · ‖x − Q_b(x)‖² of the weights of each group, and of what it reads."""
    return measure_second_order(probed, _weigh_by_mean)


def _weigh_by_mean(squares: Tensor, errors: Tensor) -> Tensor:
    return squares.mean(dim=1) * errors.sum(dim=1)
