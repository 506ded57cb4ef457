"""What a fine-tuning is told."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ompq.errors import OmpqError


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is fine-tuned; the defaults are the published ones (HAWQ-V3).

    Attributes:
        epochs: passes over the training images.
        learning_rate: of SGD at the start; it falls to 0 along a cosine, step by step.
        momentum: of SGD.
        weight_decay: of SGD.
        fix_norms: keep the batch norms' statistics from this step on; None for never.
        distill_alpha: share of the teacher in the loss, where there is a teacher.
        temperature: of the distillation.
        evaluations: per epoch.
        checkpoint_steps: steps between checkpoints within an epoch; 0 for its end only.
        print_steps: steps between two lines; 0 for none.
        amp: bfloat16 where PyTorch's autocast takes it.
        compile: the training step by torch.compile.
        apex: let NVIDIA Apex average the gradients of several processes.
    """

    epochs: int = 90
    learning_rate: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 1e-4
    fix_norms: int | None = None
    distill_alpha: float = 0.95
    temperature: float = 6.0
    evaluations: int = 1
    checkpoint_steps: int = 0
    print_steps: int = 0
    amp: bool = False
    compile: bool = False
    apex: bool = False

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--epochs", self.epochs, 0),
            ("--lr", self.learning_rate, 0),
            ("--momentum", self.momentum, 0),
            ("--wd", self.weight_decay, 0),
            ("--evaluate_times", self.evaluations, 1),
            ("--fix_BN_threshold", self.fix_norms or 0, 0),
            ("--checkpoint_iter", self.checkpoint_steps, 0),
            ("--print_freq", self.print_steps, 0),
        ):
            if not least <= value < math.inf:
                raise OmpqError(f"{option} is {value}; it must be a number, at least {least}")
        if not 0 < self.temperature < math.inf:
            raise OmpqError(f"--temperature is {self.temperature}; it must be a positive number")
        if not 0 <= self.distill_alpha <= 1:
            raise OmpqError(f"--distill_alpha is {self.distill_alpha}; it is a share from 0 to 1")
