"""What a reconstruction is told."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ompq.errors import OmpqError
from ompq.graph.parts import GRANULARITIES

LOSSES = ("mse", "fisher_diag")
CACHE_DEVICES = ("auto", "cpu", "cuda", "disk")


@dataclass(frozen=True)
class Settings:
    """How a network is reconstructed; the defaults are BRECQ's (arXiv:2102.05426).

    Attributes:
        per_channel: one weight scale per output channel; else one per layer.
        symmetric: weight grids without zero point.
        act_quant: quantize activations too.
        weight_iterations: steps of AdaRound per block.
        act_iterations: steps that learn the activation scales, per block.
        batch_size: images per step.
        rounding_weight: λ of AdaRound's regulariser.
        b_start: exponent of the regulariser when it sets in.
        b_end: its exponent at the end.
        warmup: share of the steps before it sets in.
        act_lr: learning rate of the activation scales.
        act_power: p of their L_p loss.
        loss: `mse`, or `fisher_diag` to weight every output value by its diagonal Fisher
            information.
        drop_probability: share of activation values left in float while weights are learned (QDrop,
            arXiv:2203.05740); None learns them under float activations, as BRECQ does.
        granularity: what is reconstructed at a time, `block` or `layer`.
        cache_device: where the values between blocks are kept.
        seed: of the order of the images.
    """

    per_channel: bool = True
    symmetric: bool = False
    act_quant: bool = True
    weight_iterations: int = 20000
    act_iterations: int = 5000
    batch_size: int = 32
    rounding_weight: float = 0.01
    b_start: float = 20.0
    b_end: float = 2.0
    warmup: float = 0.2
    act_lr: float = 4e-4
    act_power: float = 2.4
    loss: str = "mse"
    drop_probability: float | None = None
    granularity: str = "block"
    cache_device: str = "auto"
    seed: int = 1005

    def __post_init__(self) -> None:
        _one_of("--loss", self.loss, LOSSES)
        _one_of("--granularity", self.granularity, GRANULARITIES)
        _one_of("--cache_device", self.cache_device, CACHE_DEVICES)
        _at_least("--iters_w", self.weight_iterations, 0)
        _at_least("--iters_a", self.act_iterations, 0)
        _at_least("batch size of a step", self.batch_size, 1)
        _at_least("--weight", self.rounding_weight, 0)
        _at_least("--b_start", self.b_start, 1)
        _at_least("--b_end", self.b_end, 1)
        _at_least("--p", self.act_power, 1)
        if not 0 < self.act_lr < math.inf:
            raise OmpqError(f"--lr is {self.act_lr}; it must be a positive number")
        for name, share in (("--warmup", self.warmup), ("--drop_prob", self.drop_probability)):
            if share is not None and not 0 <= share <= 1:
                raise OmpqError(f"{name} is {share}; it must lie between 0 and 1")
        if self.drop_probability is not None and not self.act_quant:
            raise OmpqError("--drop_prob drops quantized activations; give --act_quant too")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise OmpqError(f"{name} {value}: choose one of {', '.join(known)}")


def _at_least(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise OmpqError(f"{name} is {value}; it must be a number, at least {least}")
