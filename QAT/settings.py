"""Settings of a fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ompq.errors import OmpqError
from ompq.fields import settle_fields


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a fine-tuning; the defaults are the published ones (HAWQ-V3).

    Attributes:
        epochs: Number of passes over the training images.
        learning_rate: Learning rate of SGD at the start; it falls to 0 along a cosine, step by
            step.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        fix_norms: Step from which on the batch norms' statistics are kept; None for never.
        re_estimate_norms: Whether the batch norms' statistics are estimated anew at the end, and
            kept where that is better; not so where `fix_norms` keeps them.
        distill_alpha: Share of the teacher in the loss, where there is a teacher.
        temperature: Temperature of the distillation.
        evaluations: Number of evaluations per epoch.
        checkpoint_steps: Steps between checkpoints within an epoch; 0 for evaluations only.
        print_steps: Steps between two printed lines; 0 for none.
        amp: Whether to compute in bfloat16 where PyTorch's autocast does.
        compile: Whether torch.compile compiles the training step.
        apex: Whether NVIDIA Apex averages the gradients of several processes.

    Raises:
        OmpqError: A value is of another type, or out of its range.
    """

    epochs: int = 90
    learning_rate: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 1e-4
    fix_norms: int | None = None
    re_estimate_norms: bool = True
    distill_alpha: float = 0.95
    temperature: float = 6.0
    evaluations: int = 1
    checkpoint_steps: int = 0
    print_steps: int = 0
    amp: bool = False
    compile: bool = False
    apex: bool = False

    def __post_init__(self) -> None:
        settle_fields(self)
        for name, least in (
            ("epochs", 0),
            ("learning_rate", 0),
            ("momentum", 0),
            ("weight_decay", 0),
            ("evaluations", 1),
            ("fix_norms", 0),
            ("checkpoint_steps", 0),
            ("print_steps", 0),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise OmpqError(f"`{name}` is {value}; it must be a number, at least {least}")
        if not 0 < self.temperature < math.inf:
            raise OmpqError(f"`temperature` is {self.temperature}; it must be a positive number")
        if not 0 <= self.distill_alpha <= 1:
            raise OmpqError(f"`distill_alpha` is {self.distill_alpha}; it is a share from 0 to 1")
