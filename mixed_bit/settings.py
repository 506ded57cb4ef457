"""What a search is asked: metric, candidates, budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mixed_bit.latency import LatencyTable
from mixed_bit.metrics import METRICS
from ompq.bitconfig import DEFAULT_ACT_BITS, QUANT_TYPES
from ompq.errors import OmpqError
from ompq.widths import check_widths

# Whole numbers of bits, bit operations and nanoseconds stay within 63 bits.
_LARGEST_BUDGET = 1e9


@dataclass(frozen=True)
class SearchSettings:
    """What the user asks of a search; refuses what makes no sense.

    `size_mb` (2²⁰ bytes), `bops_g` (10⁹ bit operations) and `latency_ms` (by the table `latency`)
    are budgets, one at least. `candidates` is None for the widths of the quantization type. `pins`
    fixes layers by name. `act_bits` is the width of all activations, unless `act_candidates` names
    widths to choose from. `beta` ≥ 0 is the β of θ = exp(−β γ).
    """

    quant_type: str
    size_mb: float | None = None
    bops_g: float | None = None
    candidates: tuple[int, ...] | None = None
    pins: Mapping[str, int] = field(default_factory=dict)
    act_bits: int = DEFAULT_ACT_BITS
    act_candidates: tuple[int, ...] = ()
    latency_ms: float | None = None
    latency: LatencyTable | None = None
    metric: str = "orm"
    beta: float = 10.0
    solver: str = "ilp"
    rounding: str = "fill"
    centred: bool = True

    def __post_init__(self) -> None:
        if self.quant_type not in QUANT_TYPES:
            known = ", ".join(QUANT_TYPES)
            raise OmpqError(f"--quant_type {self.quant_type}: unknown; choose one of {known}")
        if self.metric not in METRICS:
            raise OmpqError(f"--metric {self.metric}: unknown; choose one of {', '.join(METRICS)}")
        budgets = {
            "--model_size": self.size_mb,
            "--bops": self.bops_g,
            "--latency": self.latency_ms,
        }
        if all(value is None for value in budgets.values()):
            raise OmpqError("no budget is given; set --model_size MB, --bops G or --latency MS")
        for option, value in budgets.items():
            if value is not None and not 0 < value <= _LARGEST_BUDGET:
                raise OmpqError(f"{option} {value}: a budget is a number above 0, up to 1e9")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise OmpqError(f"--beta {self.beta}: give a finite number that is not negative")
        check_widths(self.widths, "--bits")
        for layer, width in self.pins.items():
            check_widths([width], f"--pin {layer}")
        check_widths([self.act_bits, *self.act_candidates], "--act_bits")
        if self.act_candidates and self.bops_g is None:
            raise OmpqError("--act_bits to choose from need a budget they count in: set --bops G")
        if (self.latency_ms is None) != (self.latency is None):
            raise OmpqError("--latency MS and --latency_table FILE go together")

    @property
    def widths(self) -> tuple[int, ...]:
        """Candidate widths, ascending."""
        return tuple(sorted(set(self.candidates or QUANT_TYPES[self.quant_type].candidates)))

    @property
    def act_widths(self) -> tuple[int, ...]:
        """Activation widths to choose from, ascending; empty if there is nothing to choose."""
        return tuple(sorted(set(self.act_candidates)))
