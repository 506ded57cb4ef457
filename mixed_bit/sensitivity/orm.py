"""Network orthogonality: −c_i · b, as in the paper; OMPQ (arXiv:2109.07865), equation 8.

c_i is the importance that `mixed_bit.sensitivity.importance` derives from the orthogonality matrix.
It values bits, not what they save: every further bit of a group is worth as much as the first. One
forward pass and the Gram matrices of the features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mixed_bit.sensitivity.base import Sensitivity


def measure(
    log_importance: NDArray[np.float64], widths: Sequence[int], act_widths: Sequence[int] = ()
) -> Sensitivity:
    """Return −b for every weight or activation width of b bits, to be multiplied by c.

    Args:
        log_importance: ln c, L values.
        widths: Weight widths, in bits.
        act_widths: Activation widths, in bits; empty where they are not chosen.

    >>> measure(np.array([0.0, -3000.0]), widths=(4, 8)).weights
    array([[-4., -8.],
           [-4., -8.]])
    """
    groups = len(log_importance)
    return Sensitivity(
        weights=-np.tile(np.array(widths, dtype=np.float64), (groups, 1)),
        activations=-np.tile(np.array(act_widths, dtype=np.float64), (groups, 1)),
        log_scale=np.asarray(log_importance, dtype=np.float64),
        forward_passes=1.0,
    )
