"""The loss of a network that is to give another one's logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, softmax


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the loss of a student against a teacher (Hinton et al., arXiv:1503.02531).

    It is T² · KL(softmax(teacher / T) ‖ softmax(student / T)); the factor T² makes up for the
    gradients' share of 1 / T² that the softmaxes leave.

    Args:
        student: Logits of the network that learns, n × classes.
        teacher: Logits of the network that teaches, n × classes.
        temperature: T, positive.

    Returns:
        The mean over the images, a scalar.

    >>> import torch
    >>> logits = torch.tensor([[0.0, 1.0]])
    >>> float(distillation_loss(logits, logits + 3, temperature=6.0))
    0.0
    """
    log_shares = log_softmax(student / temperature, dim=1)
    shares = softmax(teacher / temperature, dim=1)
    return kl_div(log_shares, shares, reduction="batchmean") * temperature**2
