"""Settings of the block reconstruction."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ompq.errors import OmpqError
from ompq.fields import settle_fields
from ompq.graph.subgraphs import GRANULARITIES

LOSSES = ("mse", "fisher_diag")
# Narrower weights fit into 8 bits with their zero point subtracted.
_CONTAINER_BITS = 8
CACHE_DEVICES = ("auto", "cpu", "cuda", "disk")
# Updates that few steps are made to give, and the most of them that a step is taken in.
_ENOUGH_UPDATES = 500
_MOST_PER_STEP = 4


@dataclass(frozen=True)
class Settings:
    """Settings of the block reconstruction; the defaults are BRECQ's (arXiv:2102.05426).

    Attributes:
        per_channel: Whether every output channel has a weight scale of its own; else one per layer.
        symmetric: Whether weights are quantized symmetrically, without zero point; None for those
            of 8 bits alone, which runtimes of 8-bit integers have no zero point for.
        act_quant: Whether activations are quantized too.
        quantize_sums: Whether sums, concatenations and averages read 8 bits, as kernels of 8-bit
            integers do.
        equalise_norms: Whether norms whose channels differ much in range are made even first, where
            activations are quantized and the layers behind gain by it.
        equalise_layers: Whether channels between two layers are made even first, where activations
            are quantized, weights have a scale per channel and the layers behind gain by it.
        correct_biases: Whether the biases of a block take back what quantization does to the means
            of its layers, where the block's loss falls by it.
        weight_iterations: Steps of AdaRound per block.
        act_iterations: Steps per block that learn the scales of the activations.
        tuning_iterations: Steps that tune scales and biases of the whole network together at the
            end, to give the float network's logits; None for as many as `act_iterations` where
            activations are quantized, else none.
        vary_images: Whether blocks learn from mirrored and shifted copies of the images too, and
            the steps that tune see them so, and mixed.
        varied_copies: Copies of each image that blocks learn from; None for three of images of at
            most 64 × 64 pixels, else none.
        batch_size: Images per step of a block; a step of tuning takes up to twice as many.
        updates_per_step: Updates that a step of a block is taken in, each by its part of the
            images, rounded up; None for up to four where there are at most 250 steps.
        rounding_weight: Weight λ of AdaRound's regulariser.
        b_start: Exponent of the regulariser when it sets in.
        b_end: Exponent of the regulariser at the last step.
        warmup: Share of the steps before the regulariser sets in.
        act_lr: Learning rate of the activation scales.
        act_power: Power p of the L_p loss of the activations.
        loss: Loss of a block: `mse`, or `fisher_diag` to weight every output value by its diagonal
            Fisher information.
        drop_probability: Share of activation values left in float while weights are learned (QDrop,
            arXiv:2203.05740); None learns weights under float activations, as BRECQ does.
        granularity: What is reconstructed at a time, `block` or `layer`.
        cache_device: Place of the values between blocks: `cpu`, `cuda`, `disk`, or `auto` for the
            fastest of them with enough room.
        seed: Seed of the order of the images.

    Raises:
        OmpqError: A field has a value that makes no sense (names it).
    """

    per_channel: bool = True
    symmetric: bool | None = None
    act_quant: bool = True
    quantize_sums: bool = True
    equalise_norms: bool = True
    equalise_layers: bool = True
    correct_biases: bool = True
    weight_iterations: int = 20000
    act_iterations: int = 5000
    tuning_iterations: int | None = None
    vary_images: bool = True
    varied_copies: int | None = None
    batch_size: int = 32
    updates_per_step: int | None = None
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
        settle_fields(self)
        self._check_choice("loss", LOSSES)
        self._check_choice("granularity", GRANULARITIES)
        self._check_choice("cache_device", CACHE_DEVICES)
        self._check_minimum("weight_iterations", 0)
        self._check_minimum("act_iterations", 0)
        if self.tuning_iterations is not None:
            self._check_minimum("tuning_iterations", 0)
        if self.varied_copies is not None:
            self._check_minimum("varied_copies", 0)
            if self.varied_copies and not self.vary_images:
                raise OmpqError("`varied_copies` are of varied images; leave `vary_images` on")
        self._check_minimum("batch_size", 1)
        if self.updates_per_step is not None:
            self._check_minimum("updates_per_step", 1)
            if self.updates_per_step > self.batch_size:
                parts, images = self.updates_per_step, self.batch_size
                raise OmpqError(f"`updates_per_step` is {parts}; a step has {images} images")
        self._check_minimum("rounding_weight", 0)
        self._check_minimum("b_start", 1)
        self._check_minimum("b_end", 1)
        self._check_minimum("act_power", 1)
        if not 0 < self.act_lr < math.inf:
            raise OmpqError(f"`act_lr` is {self.act_lr}; it must be a positive number")
        self._check_share("warmup")
        self._check_share("drop_probability")
        if self.drop_probability is not None and not self.act_quant:
            raise OmpqError("`drop_probability` drops quantized activations; give `act_quant` too")

    def plan_updates(self, steps: int) -> tuple[int, int]:
        """Return the number of updates that steps of a block are taken in, and images of each.

        What few steps lack is updates more than images.

        >>> Settings().plan_updates(100), Settings().plan_updates(20000)
        ((400, 8), (20000, 32))
        """
        parts = self.updates_per_step
        if parts is None:
            parts = min(max(1, _ENOUGH_UPDATES // max(1, steps)), _MOST_PER_STEP)
            parts = min(parts, self.batch_size)
        return steps * parts, math.ceil(self.batch_size / parts)

    @property
    def tuning_steps(self) -> int:
        """Return the number of steps that tune the whole network.

        >>> Settings(act_iterations=200).tuning_steps, Settings(act_quant=False).tuning_steps
        (200, 0)
        """
        if self.tuning_iterations is not None:
            return self.tuning_iterations
        return self.act_iterations if self.act_quant else 0

    def is_symmetric(self, bits: int) -> bool:
        """Tell whether weights of a width are quantized symmetrically.

        >>> Settings().is_symmetric(8), Settings().is_symmetric(4)
        (True, False)
        """
        return bits == _CONTAINER_BITS if self.symmetric is None else self.symmetric

    def _check_choice(self, field: str, known: tuple[str, ...]) -> None:
        value = getattr(self, field)
        if value not in known:
            raise OmpqError(f"`{field}` {value}: choose one of {', '.join(known)}")

    def _check_minimum(self, field: str, least: float) -> None:
        value = getattr(self, field)
        if not least <= value < math.inf:
            raise OmpqError(f"`{field}` is {value}; it must be a number, at least {least}")

    def _check_share(self, field: str) -> None:
        share = getattr(self, field)
        if share is not None and not 0 <= share <= 1:
            raise OmpqError(f"`{field}` is {share}; it must lie between 0 and 1")
