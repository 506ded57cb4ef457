"""What a reconstruction minimises."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import mse_loss


def reconstruction_loss(
    outputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    importances: Sequence[Tensor | None],
    power: float = 2.0,
) -> Tensor:
    """Σ over channels of w |ŷ − y|^p, averaged over images and positions, summed over outputs.

    Args:
        outputs: ŷ, each n × channels × ….
        targets: y, of the same shapes.
        importances: w, of the same shapes; None for 1 (BRECQ equation 10: squared gradients).
        power: p.
    """
    total = torch.zeros((), device=outputs[0].device)
    for output, target, importance in zip(outputs, targets, importances, strict=True):
        channels = output.shape[1] if output.dim() > 1 else 1
        if importance is None and power == 2:
            total = total + channels * mse_loss(output, target)
            continue
        error = (output - target).abs().pow(power)
        error = error if importance is None else error * importance
        total = total + channels * error.mean()
    return total
