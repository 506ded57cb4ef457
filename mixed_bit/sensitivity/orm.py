"""Network orthogonality: −c_i · b, as in the paper; OMPQ (arXiv:2109.07865), equation 8.

c_i is the importance that `mixed_bit.sensitivity.importance` derives from the orthogonality matrix.
It prices bits, not what they save: every further bit of a group is worth the same. One forward pass
and the Gram matrices of the features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mixed_bit.sensitivity.base import Sensitivity


def measure(
    log_importance: NDArray[np.float64], widths: Sequence[int], act_widths: Sequence[int] = ()
) -> Sensitivity:
    """−b for a weight or activation width of b bits, times c.

    Args:
        log_importance: ln c, L values.
        widths: of the weights.
        act_widths: of the activations.
    """
    groups = len(log_importance)
    return Sensitivity(
        weights=-np.tile(np.array(widths, dtype=np.float64), (groups, 1)),
        activations=-np.tile(np.array(act_widths, dtype=np.float64), (groups, 1)),
        log_scale=np.asarray(log_importance, dtype=np.float64),
        forward_passes=1.0,
    )
