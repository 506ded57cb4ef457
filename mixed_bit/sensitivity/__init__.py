"""What it costs a network to quantize one group to one width: six metrics, one file per answer.

base            Sensitivity (a table), ProbedNetwork (what is looked at)
orm             network orthogonality, the paper's; features, orthogonality, importance
sqnr            relative rounding error
fisher          diagonal Fisher information, by squared gradients
hessian         mean Hessian trace, by squared gradients
kl              divergence of the output, one group at a time
orm_sqnr        relative rounding error times orthogonality
evaluator       any of them on the same images, each measured once
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mixed_bit.sensitivity import fisher, hessian, kl, orm, orm_sqnr, sqnr
from mixed_bit.sensitivity.base import ProbedNetwork, Sensitivity


class Measurements(Protocol):
    """Measurements that a metric may ask of the evaluator, each made once."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the weight widths to measure."""

    @property
    def act_widths(self) -> tuple[int, ...]:
        """Return the activation widths to measure."""

    @property
    def probed(self) -> ProbedNetwork:
        """Return the network with all calibration images at once."""

    def log_importance(self, beta: float) -> NDArray[np.float64]:
        """Return ln c of every group, by orthogonality."""

    def sensitivity(self, metric: str, beta: float) -> Sensitivity:
        """Return the sensitivities by another metric."""


@dataclass(frozen=True)
class Metric:
    """One answer to what a width costs a group.

    Attributes:
        measure: Function of the evaluator's measurements and of β that gives the sensitivities;
            without orthogonality, it ignores β.
        uses_orthogonality: Whether it depends on β, and shows γ and c of every group.
        uses_labels: Whether labels of the images change it.
        streams: Whether one pass over the images suffices, so that they need not be kept.
    """

    measure: Callable[[Measurements, float], Sensitivity]
    uses_orthogonality: bool = False
    uses_labels: bool = False
    streams: bool = False


def _measure_orm(known: Measurements, beta: float) -> Sensitivity:
    return orm.measure(known.log_importance(beta), known.widths, known.act_widths)


def _measure_orm_sqnr(known: Measurements, beta: float) -> Sensitivity:
    return orm_sqnr.measure(known.sensitivity("sqnr", beta), known.log_importance(beta))


METRICS: dict[str, Metric] = {
    "orm": Metric(_measure_orm, uses_orthogonality=True, streams=True),
    "sqnr": Metric(lambda known, _: sqnr.measure(known.probed)),
    "fisher": Metric(lambda known, _: fisher.measure(known.probed), uses_labels=True),
    "kl": Metric(lambda known, _: kl.measure(known.probed)),
    "hessian": Metric(lambda known, _: hessian.measure(known.probed), uses_labels=True),
    "orm_sqnr": Metric(_measure_orm_sqnr, uses_orthogonality=True),
}

__all__ = ["METRICS", "Measurements", "Metric", "ProbedNetwork", "Sensitivity"]
