"""The smallest network within a distance of the float one, found along the proven front.

The distance is the divergence of the output, or the loss of top-1 accuracy, of the network with its
weights rounded, on images that no sensitivity was measured on. Along the front of size and
sensitivity it falls as the size grows, but for noise: the front is bisected, from the largest
network that comes near enough to the smallest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mixed_bit.allocation.program import Allocation, Program
from mixed_bit.comparison.outcome import Outcome, OutcomeEvaluator
from mixed_bit.problem import Problem
from mixed_bit.settings import SearchSettings
from ompq.cost import BITS_PER_MB
from ompq.errors import OmpqError

# Sizes to try where the largest network is not near enough: none need be better than all others.
_TRIES = 8


@dataclass(frozen=True)
class Distance:
    """How far a rounded network is from the float one, on images held out from the search.

    Attributes:
        kl: Divergence KL(float ‖ rounded) per image, nats.
        drop: Loss of top-1 accuracy, points of per cent; without labels the share of images whose
            answer changed, which the loss cannot exceed.
        by_labels: Whether `drop` was counted by labels.
        num_images: Images held out.
        tried: Allocations that were judged.
    """

    kl: float
    drop: float
    by_labels: bool
    num_images: int
    tried: int = 1

    @classmethod
    def of(cls, outcome: Outcome, outcomes: OutcomeEvaluator) -> Distance:
        """Tell the distance of one outcome."""
        drop = 100.0 - outcome.agreement
        if outcome.top1 is not None and outcomes.top1 is not None:
            drop = outcomes.top1 - outcome.top1
        by_labels = outcome.top1 is not None
        return cls(outcome.kl, drop, by_labels, outcomes.num_images)

    def is_within(self, settings: SearchSettings) -> bool:
        """Tell whether the distance keeps what the settings ask for."""
        return self._find_excess(settings) <= 0

    def _find_excess(self, settings: SearchSettings) -> float:
        pairs = (self.kl, settings.kl_nats), (self.drop, settings.drop_points)
        # A millionth of a point: shares of images are not exact in binary.
        return max(found - limit - 1e-6 * limit for found, limit in pairs if limit is not None)

    def describe(self) -> str:
        """Say how far the network is, and what that was judged on."""
        loss = "by labels" if self.by_labels else "changed answers, an upper bound: no labels"
        return (
            f"judged on {self.num_images} images held out (half of all): divergence "
            f"{self.kl:.4g} nats, loss of top-1 {self.drop:.2f} points ({loss}; an image counts "
            f"{100 / self.num_images:.2g}); {self.tried} allocations tried"
        )


def find_smallest(
    problem: Problem, program: Program, outcomes: OutcomeEvaluator
) -> tuple[Allocation, Distance]:
    """Find the smallest allocation of the front that is near enough to the float network.

    Args:
        problem: Its settings give the distance, and budgets that hold throughout.
        program: The program of the problem, its first budget that of the size.
        outcomes: Measures what allocations do, on images held out.

    Raises:
        OmpqError: No allocation is near enough (names the nearest), or a budget is infeasible.
    """
    front = _Front(problem, program, outcomes)
    size = program.budgets[0]
    low = size.find_least(program.allowed) - 1
    high = _find_start(front, low, size.limit)
    # What fails at a size fails at all sizes down to its own; what is near enough is its own size.
    while high - low > 1:
        middle = (low + high) // 2
        found = front.try_size(middle)
        if found is not None and found <= middle:
            high = found
        else:
            low = middle
    return front.get_best()


def _find_start(front: _Front, low: int, limit: int) -> int:
    """Find a size from which on networks are near enough: the largest's, or one below it.

    Raises:
        OmpqError: None of some sizes is near enough; the nearest is named.
    """
    for share in np.linspace(1.0, 0.0, _TRIES):
        start = limit if share == 1 else low + 1 + int(share * (front.largest - low - 1))
        found = front.try_size(start)
        if found is not None:
            return found
    raise OmpqError(front.explain())


class _Front:
    """The proven front, judged at the sizes that are asked for.

    Args:
        problem: Settings and solver.
        program: Program whose first budget is that of the size.
        outcomes: Measures what allocations do.

    Attributes:
        largest: Size of the largest allocation that was tried, bits.
    """

    def __init__(self, problem: Problem, program: Program, outcomes: OutcomeEvaluator) -> None:
        self._problem, self._program, self._outcomes = problem, program, outcomes
        self._tried: dict[tuple[int, ...], tuple[Allocation, Distance]] = {}
        self._best: tuple[int, Allocation, Distance] | None = None
        self.largest = 0

    def try_size(self, limit: int) -> int | None:
        """Judge the optimum of a size in bits; return its size if it is near enough, else None."""
        size, *others = self._program.budgets
        program = replace(self._program, budgets=(replace(size, limit=limit), *others))
        try:
            allocation = self._problem.solve(program)
        except OmpqError:
            if not self._tried:
                raise
            return None  # other budgets need more
        spent = size.spent(program.choice(allocation))
        self.largest = max(self.largest, spent)
        key = (*allocation.bits, *allocation.act_bits)
        if key not in self._tried:
            outcome = self._outcomes.measure(self._problem.assign(allocation))
            self._tried[key] = allocation, Distance.of(outcome, self._outcomes)
        distance = self._tried[key][1]
        if not distance.is_within(self._problem.settings):
            return None
        if self._best is None or spent < self._best[0]:
            self._best = spent, allocation, distance
        return spent

    def get_best(self) -> tuple[Allocation, Distance]:
        """Return the smallest allocation that is near enough."""
        assert self._best is not None
        _, allocation, distance = self._best
        return allocation, replace(distance, tried=len(self._tried))

    def explain(self) -> str:
        """Say that nothing is near enough, and what is nearest."""
        settings = self._problem.settings
        parts = []
        for name, limit, unit, read in (
            ("kl_nats", settings.kl_nats, "nats", lambda d: d.kl),
            ("drop_points", settings.drop_points, "points", lambda d: d.drop),
        ):
            if limit is not None:
                parts.append(self._explain_one(name, limit, unit, read))
        told = "; ".join(part for part in parts if part)
        told = told or "`kl_nats` and `drop_points` are each met, but not by one network"
        return f"{told}; allow as much, or widen `candidate_bits` and loosen `pins`"

    def _explain_one(
        self, name: str, limit: float, unit: str, read: Callable[[Distance], float]
    ) -> str:
        allocation, distance = min(self._tried.values(), key=lambda pair: read(pair[1]))
        # Rounded up: the value that is printed shall be met when it is given back.
        nearest = math.ceil(read(distance) * 1e6) / 1e6
        if read(distance) <= limit:
            return ""
        size_mb = self._program.budgets[0].spent(self._program.choice(allocation)) / BITS_PER_MB
        return (
            f"`{name}` {limit:g}: no network with these widths is so near; the nearest has "
            f"{nearest:.6g} {unit}, at {size_mb:.4f} MB"
        )
