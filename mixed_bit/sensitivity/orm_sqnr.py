"""Relative rounding error, weighed by orthogonality: c_i · ‖x − Q_b(x)‖² / ‖x‖².

The errors are those of `sqnr`, the importances c_i those of `orm`: a group that shares little with
the others may err less. Its work is that of `sqnr` and of `orm` together.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mixed_bit.sensitivity.base import Sensitivity


def measure(errors: Sensitivity, log_importance: NDArray[np.float64]) -> Sensitivity:
    """Multiply relative rounding errors by the importances c.

    Args:
        errors: Sensitivities by `sqnr`.
        log_importance: ln c, L values.
    """
    log_scale = np.asarray(log_importance, dtype=np.float64)
    return replace(errors, log_scale=log_scale, forward_passes=errors.forward_passes + 1)
