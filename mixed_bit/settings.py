"""What a search is asked: metric, candidate widths, budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mixed_bit.latency.table import LatencyTable
from mixed_bit.sensitivity import METRICS
from ompq.assignment import DEFAULT_ACT_BITS, QUANT_TYPES
from ompq.cost import check_widths
from ompq.errors import OmpqError
from ompq.fields import settle_fields
from ompq.target import Target

SOLVERS = ("ilp", "lp", "projection")
ROUNDINGS = ("fill", "nearest")
# Budgets of a front between two sizes: by sensitivity, and where every candidate is tried out.
FRONT_POINTS = 200
MEASURED_FRONT_POINTS = 10
# Whole numbers of bits, bit operations and nanoseconds stay within 63 bits.
LARGEST_BUDGET = 1e9
# What a width costs a group where nobody says: the best rank among what takes seconds.
DEFAULT_METRIC = "fisher"
PAPER_METRIC, PAPER_BETA, PAPER_SOLVERS = "orm", 10.0, ("lp", "projection")
BUDGETS = ("size_mb", "bops_g", "latency_ms", "act_memory_kb")


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a bit search; refuse what makes no sense.

    Attributes:
        quant_type: `QAT` (first and last layer pinned at 8 bits, others 4 to 8) or `PTQ` (all
            groups, 2 to 4).
        size_mb: Size budget, MB (2²⁰ bytes). One of the four budgets is needed.
        bops_g: Budget of bit operations for one image, 10⁹.
        candidate_bits: Weight widths to choose from; None for those of the quantization type.
        candidate_bits_by_layer: Layer, or glob such as `layer4.*` → weight widths to choose from
            in the place of `candidate_bits`. Exact names go before globs, later globs before
            earlier ones.
        pins: Layer, or glob → the width that it keeps, by the same order.
        act_bits: Width of all activations, unless `candidate_act_bits` names several.
        candidate_act_bits: Activation widths to choose from, under a budget of bit operations or
            of the activations' memory.
        latency_ms: Latency budget, milliseconds, by `latency_table`.
        latency_table: Measured times of every layer at some widths.
        act_memory_kb: The most that activations for one image may take at one time, KB (1024
            bytes), by the schedule of the graph.
        kl_nats: Find the smallest network whose output diverges from the float network's by no
            more than this, nats per image, on images held out; budgets stay limits.
        drop_points: Find the smallest network that loses no more than this of top-1 accuracy,
            points of per cent, on images held out; both distances may be given.
        target: Device to find widths for; its widths limit those of every layer, and its memory
            the size and the activations.
        metric: What a width costs a group, one of `METRICS`. None for `fisher`, or for the paper's
            `orm` where something of the paper's method is given (`beta`, another solver than
            `ilp`, no centring), where several processes share the work, or where gradients cannot
            be computed.
        beta: β ≥ 0 of θ = exp(−β γ), for the metrics of orthogonality; None for the paper's 10.
        solver: `ilp`, `lp` or `projection`; see `mixed_bit.allocation.solve`.
        rounding: `fill` or `nearest`, for `projection`.
        centred: Centre the Gram matrices.
    """

    quant_type: str
    size_mb: float | None = None
    bops_g: float | None = None
    candidate_bits: tuple[int, ...] | None = None
    pins: Mapping[str, int] = field(default_factory=dict)
    candidate_bits_by_layer: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    act_bits: int = DEFAULT_ACT_BITS
    candidate_act_bits: tuple[int, ...] = ()
    latency_ms: float | None = None
    latency_table: LatencyTable | None = None
    act_memory_kb: float | None = None
    kl_nats: float | None = None
    drop_points: float | None = None
    target: Target | None = None
    metric: str | None = None
    beta: float | None = None
    solver: str = "ilp"
    rounding: str = "fill"
    centred: bool = True

    def __post_init__(self) -> None:
        settle_fields(self, besides=BUDGETS)
        self._take_budgets_of_target()
        if self.quant_type not in QUANT_TYPES:
            known = ", ".join(QUANT_TYPES)
            raise OmpqError(f"`quant_type` {self.quant_type}: unknown; choose one of {known}")
        if self.metric is not None and self.metric not in METRICS:
            raise OmpqError(f"`metric` {self.metric}: unknown; choose one of {', '.join(METRICS)}")
        self._check_budgets()
        self._check_distance()
        if self.beta is not None and not (math.isfinite(self.beta) and self.beta >= 0):
            raise OmpqError(f"`beta` {self.beta}: give a finite number that is not negative")
        if self.candidate_bits is not None and not self.candidate_bits:
            raise OmpqError("`candidate_bits` is empty; give widths from 2 to 8, or None")
        check_widths(self.widths, "`candidate_bits`")
        for pattern, widths in self.candidate_bits_by_layer.items():
            if not widths:
                raise OmpqError(f"`candidate_bits_by_layer` {pattern}: give widths from 2 to 8")
            check_widths(widths, f"`candidate_bits_by_layer` {pattern}")
        for layer, width in self.pins.items():
            check_widths([width], f"`pins` {layer}")
        check_widths([self.act_bits, *self.candidate_act_bits], "`act_bits`")
        if self.target is not None:
            for width in self.candidate_act_bits or (self.act_bits,):
                self.target.check_choices(act_bits=width)
        if self.candidate_act_bits and self.bops_g is None and self.act_memory_kb is None:
            raise OmpqError(
                "`act_bits` to choose from need a budget they count in: set `bops_g` or "
                "`act_memory_kb`"
            )
        if (self.latency_ms is None) != (self.latency_table is None):
            raise OmpqError("`latency_ms` and `latency_table` go together; give both")

    def _check_budgets(self) -> None:
        budgets = {name: getattr(self, name) for name in BUDGETS}
        if all(value is None for value in budgets.values()) and not self.has_distance:
            names = ", ".join(f"`{name}`" for name in BUDGETS[:-1])
            raise OmpqError(
                f"no budget is given; set {names} or `{BUDGETS[-1]}`, or a distance, `kl_nats` or "
                "`drop_points`"
            )
        for name, value in budgets.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (is_number and 0 < value <= LARGEST_BUDGET):
                raise OmpqError(f"`{name}` {value!r}: a budget is a number above 0, up to 1e9")

    def _take_budgets_of_target(self) -> None:
        """Lower the budgets to the memory of the target, where they are not below it."""
        if self.target is None:
            return
        memory = {"size_mb": self.target.flash_mb, "act_memory_kb": self.target.act_memory_kb}
        for name, limit in memory.items():
            given = getattr(self, name)
            is_number = isinstance(given, int | float)
            if limit is not None and (given is None or (is_number and given > limit)):
                # Object's own, since the dataclass is frozen.
                object.__setattr__(self, name, limit)

    def _check_distance(self) -> None:
        for name in ("kl_nats", "drop_points"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise OmpqError(f"`{name}` {value}: a distance is a number from 0 on")
        if self.has_distance and self.solver != "ilp":
            raise OmpqError(
                f"`solver` {self.solver}: a distance is sought along the proven front; leave the "
                "solver at ilp"
            )

    @property
    def chosen_metric(self) -> str:
        """Return the metric: the one that is given, or what the other settings mean."""
        if self.metric is not None:
            return self.metric
        return PAPER_METRIC if self.of_paper else DEFAULT_METRIC

    @property
    def of_paper(self) -> tuple[str, ...]:
        """Return the names of the fields that mean the paper's method."""
        given = {
            "beta": self.beta is not None,
            "solver": self.solver in PAPER_SOLVERS,
            "centred": not self.centred,
        }
        return tuple(name for name, is_given in given.items() if is_given)

    @property
    def chosen_beta(self) -> float:
        """Return β: the one that is given, or the paper's."""
        return PAPER_BETA if self.beta is None else self.beta

    @property
    def has_distance(self) -> bool:
        """Tell whether the smallest network within a distance is sought."""
        return self.kl_nats is not None or self.drop_points is not None

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the candidate widths, ascending; without any given, all of the target."""
        usual = QUANT_TYPES[self.quant_type].candidates
        if self.target is not None:
            usual = self.target.widths
        return tuple(sorted(set(self.candidate_bits or usual)))

    @property
    def act_widths(self) -> tuple[int, ...]:
        """Return the activation widths to choose from, ascending; empty without a choice."""
        return tuple(sorted(set(self.candidate_act_bits)))


def check_front_ends(low_mb: float, high_mb: float) -> None:
    """Refuse ends of a front that are not positive and ascending.

    Raises:
        OmpqError: They are not.
    """
    if not 0 < low_mb < high_mb:
        raise OmpqError(f"`sweep` {low_mb} {high_mb}: give the smaller size first, both positive")
