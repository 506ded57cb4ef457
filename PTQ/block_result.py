"""The result of reconstructing one block."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ompq.quantizers import QuantParams


@dataclass(frozen=True)
class BlockReport:
    """A report of how a block was learned, with its losses on the calibration images.

    Without activation quantizers, or with activations in float, the `act_` entries are empty.

    Attributes:
        name: Name of the block.
        layers: Names of the layers that the block calls, in execution order.
        iterations: Steps that learned the rounding of the weights.
        loss_before: Loss with weights rounded to nearest.
        loss_after: Loss with the weights that were kept.
        kept: Which weights were kept: `reconstruction`, or the reason for anything else.
        act_iterations: Steps that learned the scales of the activations.
        act_loss_before: Loss with the activation scales that were searched.
        act_loss_after: Loss with the activation scales that were kept.
        act_kept: Which activation scales were kept: `learned`, or `searched` with the reason.
        seconds: Wall-clock seconds of the reconstruction.
        bias_loss_before: Loss before the biases were corrected; None where they were left.
        bias_loss_after: Loss with the corrected biases.
    """

    name: str
    layers: tuple[str, ...]
    iterations: int
    loss_before: float
    loss_after: float
    kept: str
    act_iterations: int
    act_loss_before: float | None
    act_loss_after: float | None
    act_kept: str
    seconds: float
    bias_loss_before: float | None = None
    bias_loss_after: float | None = None

    def format_line(self) -> str:
        """Return the report as one line for a person to read.

        >>> learned = ("reconstruction", 20, 0.03, 0.03, "searched", 1.25)
        >>> BlockReport("layer1.0", ("layer1.0.conv1",), 400, 0.5, 0.125, *learned).format_line()
        'layer1.0: weights 0.5 → 0.125; activations 0.03, kept searched; 1.2 s'
        """
        text = (
            f"{self.name}: weights {_format_change(self.loss_before, self.loss_after, self.kept)}"
        )
        if self.act_loss_before is not None and self.act_loss_after is not None:
            change = _format_change(self.act_loss_before, self.act_loss_after, self.act_kept)
            text += f"; activations {change}"
        if self.bias_loss_before is not None and self.bias_loss_after is not None:
            text += f"; biases {self.bias_loss_before:.3g} → {self.bias_loss_after:.3g}"
        return f"{text}; {self.seconds:.1f} s"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values; a loss that is not finite becomes null."""
        content = {key: None if is_not_finite(v) else v for key, v in asdict(self).items()}
        return content | {"layers": list(self.layers)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> BlockReport:
        """Build a report from the values that `to_json` returned."""
        losses = {k: values[k] for k in ("loss_before", "loss_after") if values[k] is not None}
        content = values | {"loss_before": math.nan, "loss_after": math.nan} | losses
        return cls(**(content | {"layers": tuple(values["layers"])}))


def is_not_finite(value: Any) -> bool:
    """Tell whether a value is a number that JSON cannot hold.

    >>> is_not_finite(math.nan), is_not_finite(1.0), is_not_finite("nan")
    (True, False, False)
    """
    return isinstance(value, float) and not math.isfinite(value)


def _format_change(before: float, after: float, kept: str) -> str:
    """Format what learning did to a loss, and what was kept where learning did not lower it."""
    if after < before:
        return f"{before:.3g} → {after:.3g}"
    return f"{before:.3g}, kept {kept}"


@dataclass(frozen=True)
class BlockResult:
    """All that the reconstruction of a block decided.

    Attributes:
        report: Report of how the block was learned.
        integers: Layer → the integers of its weight.
        weights: Layer → scale, zero point and range of its weight.
        activations: Path of an activation quantizer → its scale, zero point and range.
        biases: Layer → bias, where it was corrected.
    """

    report: BlockReport
    integers: dict[str, Tensor]
    weights: dict[str, QuantParams]
    activations: dict[str, QuantParams]
    biases: dict[str, Tensor]
