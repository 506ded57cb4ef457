"""What became of one part of a network."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ompq.quantizers import QuantParams


@dataclass(frozen=True)
class PartReport:
    """How a part was learned, and its loss on the calibration images.

    `loss_before` is that of rounding to nearest, `act_loss_before` that of searched activation
    grids; `kept` and `act_kept` say what was taken. Without activation quantizers, or with them
    off, the `act_` entries are empty.
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

    def line(self) -> str:
        """For a person to read."""
        text = f"{self.name}: weights {_change(self.loss_before, self.loss_after, self.kept)}"
        if self.act_loss_before is not None and self.act_loss_after is not None:
            change = _change(self.act_loss_before, self.act_loss_after, self.act_kept)
            text += f"; activations {change}"
        return f"{text}; {self.seconds:.1f} s"

    def to_json(self) -> dict[str, Any]:
        """Plain values; a loss that is not finite is null."""
        plain = {key: None if _unusable(value) else value for key, value in asdict(self).items()}
        return plain | {"layers": list(self.layers)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PartReport:
        """From `to_json`."""
        losses = {k: values[k] for k in ("loss_before", "loss_after") if values[k] is not None}
        plain = values | {"loss_before": math.nan, "loss_after": math.nan} | losses
        return cls(**(plain | {"layers": tuple(values["layers"])}))


def _unusable(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _change(before: float, after: float, kept: str) -> str:
    """What learning did to a loss, and what was kept where that is not the learned values."""
    if after < before:
        return f"{before:.3g} → {after:.3g}"
    return f"{before:.3g}, kept {kept}"


@dataclass(frozen=True)
class PartResult:
    """All that a part's reconstruction decided: integers and grids by layer, activation grids."""

    report: PartReport
    integers: dict[str, Tensor]
    weights: dict[str, QuantParams]
    activations: dict[str, QuantParams]
