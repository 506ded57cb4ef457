"""Relative rounding error, weighed by orthogonality: c_i · ‖x − Q_b(x)‖² / ‖x‖².

The errors are those of `sqnr`, the importances c_i those of `orm`: a group that shares little with
the others may err less. The work of both.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mixed_bit.metrics import sqnr
from mixed_bit.metrics.subject import Prices, Subject


def price(subject: Subject, log_importance: NDArray[np.float64]) -> Prices:
    """The prices of `sqnr`, times c; `log_importance` is ln c, L values."""
    plain = sqnr.price(subject)
    log_scale = np.asarray(log_importance, dtype=np.float64)
    return replace(plain, log_scale=log_scale, passes=plain.passes + 1)
