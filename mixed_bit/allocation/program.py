"""The program every allocation solves: one width per group, the least sensitivity, budgets kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Context, Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

from ompq.errors import OmpqError

# Bits of an exponential's mantissa: 28 digits, where a float64 has 16.
_EXPONENTIAL_BITS = 96


@dataclass(frozen=True, eq=False)
class Budget:
    """A limit on the sum of integer costs.

    Attributes:
        name: What the user calls it: size, BOPs, latency.
        cost: Cost of each group in each column, L × K, whole numbers.
        limit: The most that all groups may cost.
        constant: What the groups outside of the program cost.
        unit: Unit of what the user reads.
        per_unit: How much of the whole numbers makes one unit.
        field: Field of the settings that gives the limit.
        place: Step of the network that the limit is about; empty where it is about all of it.
    """

    name: str
    cost: NDArray[np.int64]
    limit: int
    constant: int = 0
    unit: str = ""
    per_unit: int = 1
    field: str = ""
    place: str = ""

    def find_least(self, allowed: NDArray[np.bool_]) -> int:
        """Find the least that allowed columns can spend, what is outside of the program included.

        Args:
            allowed: Which columns each group may choose, groups × columns.
        """
        cheapest = np.where(allowed, self.cost, np.iinfo(np.int64).max).min(axis=1)
        return int(cheapest.sum()) + self.constant

    @property
    def available(self) -> int:
        """Return what is left for the groups of the program."""
        return self.limit - self.constant

    def spent(self, choice: Sequence[int]) -> int:
        """Add up the cost of one column index per group, constants included."""
        return self.constant + sum(int(row[k]) for row, k in zip(self.cost, choice, strict=True))


@dataclass(frozen=True)
class Allocation:
    """One width per group.

    Attributes:
        bits: Weight width of every group.
        solver: What found it.
        optimal: Whether it is proven optimal.
        spent: Name of a budget → what is spent of it, in its unit.
        note: What a user should know, or empty.
        act_bits: Width of what every group reads; empty where there was no choice.
        objective: Sum of the sensitivities, as far as a float64 can tell it.
    """

    bits: tuple[int, ...]
    solver: str
    optimal: bool
    spent: dict[str, float] = field(default_factory=dict)
    note: str = ""
    act_bits: tuple[int, ...] = ()
    objective: float = 0.0


@dataclass(frozen=True, eq=False)
class Program:
    """Minimise Σ_g sensitivity[g, k_g]·exp(log_scale[g]) under the budgets.

    Attributes:
        sensitivity: What each column costs each group, L × K, finite.
        log_scale: L values, which may lie far outside the exponents of a float64.
        widths: Weight width of each of the K columns, ascending.
        allowed: Columns that each group may get, L × K.
        budgets: Limits to keep.
        names: Names of the groups.
        act_widths: Activation width of each column where these are chosen too; else empty.
    """

    sensitivity: NDArray[np.float64]
    log_scale: NDArray[np.float64]
    widths: tuple[int, ...]
    allowed: NDArray[np.bool_]
    budgets: tuple[Budget, ...]
    names: tuple[str, ...]
    act_widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.names), len(self.widths))
        costs = [budget.cost.shape for budget in self.budgets]
        if {self.sensitivity.shape, self.allowed.shape, *costs} != {shape}:
            raise ValueError(f"sensitivity, allowed and costs must all be {shape}")
        if not all(np.issubdtype(budget.cost.dtype, np.integer) for budget in self.budgets):
            raise ValueError("costs must be whole numbers; count in a smaller unit")
        # Here, not in the metrics: one place for all of them, and it knows the groups' names.
        finite = np.isfinite(self.sensitivity).all(axis=1) & np.isfinite(self.log_scale)
        if not finite.all():
            name = self.names[int(np.argmin(finite))]
            raise OmpqError(
                f"the sensitivity of {name} is not finite; check its feature and weights"
            )
        if not self.allowed.any(axis=1).all():
            name = self.names[int(np.argmin(self.allowed.any(axis=1)))]
            raise OmpqError(
                f"{name} has no width to choose from; check `candidate_bits` and `pins`"
            )

    def total(self, choice: Sequence[int]) -> float:
        """Add up the sensitivities of one column index per group, as far as a float64 can tell."""
        chosen = self.sensitivity[range(len(choice)), list(choice)]
        return float(chosen @ np.exp(self.log_scale))

    def allocation(
        self, choice: Sequence[int], solver: str, *, optimal: bool = False, note: str = ""
    ) -> Allocation:
        """Name the widths that one column index per group stands for."""
        return Allocation(
            bits=tuple(self.widths[k] for k in choice),
            solver=solver,
            optimal=optimal,
            spent=self._spend(choice),
            note=note,
            act_bits=tuple(self.act_widths[k] for k in choice) if self.act_widths else (),
            objective=self.total(choice),
        )

    def _spend(self, choice: Sequence[int]) -> dict[str, float]:
        """Return what is spent of every budget; of the steps that share one, the most."""
        spent: dict[str, float] = {}
        for budget in self.budgets:
            used = budget.spent(choice) / budget.per_unit
            spent[budget.name] = max(spent.get(budget.name, used), used)
        return spent

    def choice(self, allocation: Allocation) -> list[int]:
        """Find the column index of every group's widths in an allocation."""
        acts = self.act_widths or (0,) * len(self.widths)
        chosen = allocation.act_bits or (0,) * len(allocation.bits)
        columns = {pair: k for k, pair in enumerate(zip(self.widths, acts, strict=True))}
        return [columns[pair] for pair in zip(allocation.bits, chosen, strict=True)]

    def options(self) -> list[list[int]]:
        """Return the allowed column indices of every group."""
        return [np.flatnonzero(row).tolist() for row in self.allowed]


def check_feasible(program: Program) -> None:
    """Refuse a budget that not even the cheapest widths keep.

    Raises:
        OmpqError: Names the smallest feasible value of the budget.
    """
    refusals = [text for budget in program.budgets if (text := _explain_refusal(program, budget))]
    if refusals:
        raise OmpqError("; ".join(refusals))


def _explain_refusal(program: Program, budget: Budget) -> str:
    """Say why a budget cannot be kept; empty where it can."""
    cost = np.where(program.allowed, budget.cost, np.iinfo(np.int64).max)
    least = int(cost.min(axis=1).sum()) + budget.constant
    if least <= budget.limit:
        return ""
    # Rounded up: the value that is printed shall be feasible when it is given back.
    needed = math.ceil(least / budget.per_unit * 1e4) / 1e4
    widths = sorted({program.widths[k] for k in cost.argmin(axis=1)})
    return (
        f"a {budget.name} of {budget.limit / budget.per_unit:.5g} {budget.unit} cannot be "
        f"reached: the smallest feasible {budget.name} is {needed:.4f} {budget.unit}, "
        f"at {', '.join(map(str, widths))} bits"
    )


def compute_exact_values(program: Program) -> list[list[int]]:
    """Compute −sensitivity·exp(log_scale) as whole numbers of one scale; larger is better.

    Python's integers hold any range, so that no group's value vanishes beside another's. The
    exponential is taken to 28 digits: with β near zero the scales differ by less than the last
    digit of a float64 near one. Equal scales give equal numbers.

    Returns:
        L × K whole numbers.
    """
    scales = [_compute_exponential(float(scale)) for scale in program.log_scale]
    parts = []
    for row, (mantissa, exponent) in zip(program.sensitivity, scales, strict=True):
        ratios = [(-float(value)).as_integer_ratio() for value in row]
        parts.append([(n * mantissa, exponent - d.bit_length() + 1) for n, d in ratios])
    lowest = min((e for row in parts for m, e in row if m), default=0)
    return [[m << (e - lowest) if m else 0 for m, e in row] for row in parts]


def _compute_exponential(power: float) -> tuple[int, int]:
    """Compute whole m and e with exp(power) = m·2^e, to a relative error of 2^−92.

    >>> mantissa, exponent = _compute_exponential(0.0)
    >>> mantissa * 2**exponent
    1.0
    """
    with localcontext(Context(prec=60)):
        exact, log_two = Decimal(power), Decimal(2).ln()
        exponent = math.floor(exact / log_two)
        mantissa = int((exact - exponent * log_two).exp() * 2**_EXPONENTIAL_BITS)
    return mantissa, exponent - _EXPONENTIAL_BITS
