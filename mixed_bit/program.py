"""The program every allocation solves: one width per group, prices to minimise, budgets to keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Context, Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

from ompq.errors import OmpqError

_EXPONENTIAL_BITS = 96


@dataclass(frozen=True, eq=False)
class Budget:
    """A limit on the sum of integer costs.

    `cost` is L × K (group, width); `constant` is what the groups outside the program cost. Both
    and `limit` are whole numbers, `per_unit` of which make one `unit` of what the user reads.
    """

    name: str
    cost: NDArray[np.int64]
    limit: int
    constant: int = 0
    unit: str = ""
    per_unit: int = 1

    @property
    def available(self) -> int:
        """What is left for the groups of the program."""
        return self.limit - self.constant

    def spent(self, choice: Sequence[int]) -> int:
        """Cost of one column index per group, constants included."""
        return self.constant + sum(int(row[k]) for row, k in zip(self.cost, choice, strict=True))


@dataclass(frozen=True)
class Allocation:
    """One width per group; `optimal` only where proven; `spent` in each budget's unit.

    `act_bits` are the widths of what the groups read, if there was a choice. `price` is the sum of
    the prices, as far as a float64 can tell it.
    """

    bits: tuple[int, ...]
    solver: str
    optimal: bool
    spent: dict[str, float] = field(default_factory=dict)
    note: str = ""
    act_bits: tuple[int, ...] = ()
    price: float = 0.0


@dataclass(frozen=True, eq=False)
class Program:
    """Minimise Σ_g price[g, k_g]·exp(log_scale[g]) under the budgets.

    `price` is L × K, finite; `log_scale` has L entries and may be far outside the exponents of a
    float64; `widths` are the weight widths of the K columns, ascending; `allowed` is L × K.
    Where activations are chosen too, `act_widths` are theirs: a column is a pair.
    """

    price: NDArray[np.float64]
    log_scale: NDArray[np.float64]
    widths: tuple[int, ...]
    allowed: NDArray[np.bool_]
    budgets: tuple[Budget, ...]
    names: tuple[str, ...]
    act_widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.names), len(self.widths))
        costs = [budget.cost.shape for budget in self.budgets]
        if {self.price.shape, self.allowed.shape, *costs} != {shape}:
            raise ValueError(f"price, allowed and costs must all be {shape}")
        if not all(np.issubdtype(budget.cost.dtype, np.integer) for budget in self.budgets):
            raise ValueError("costs must be whole numbers; count in a smaller unit")
        finite = np.isfinite(self.price).all(axis=1) & np.isfinite(self.log_scale)
        if not finite.all():
            name = self.names[int(np.argmin(finite))]
            raise OmpqError(f"the price of {name} is not finite; check its feature and weights")
        if not self.allowed.any(axis=1).all():
            name = self.names[int(np.argmin(self.allowed.any(axis=1)))]
            raise OmpqError(f"{name} has no width to choose from; check --bits and --pin")

    def total(self, choice: Sequence[int]) -> float:
        """Sum of the prices of one column index per group, as far as a float64 can tell it."""
        prices = self.price[range(len(choice)), list(choice)]
        return float(prices @ np.exp(self.log_scale))

    def allocation(
        self, choice: Sequence[int], solver: str, *, optimal: bool = False, note: str = ""
    ) -> Allocation:
        """What one column index per group stands for."""
        return Allocation(
            bits=tuple(self.widths[k] for k in choice),
            solver=solver,
            optimal=optimal,
            spent={b.name: b.spent(choice) / b.per_unit for b in self.budgets},
            note=note,
            act_bits=tuple(self.act_widths[k] for k in choice) if self.act_widths else (),
            price=self.total(choice),
        )

    def choice(self, allocation: Allocation) -> list[int]:
        """The column indices that an allocation stands for."""
        acts = self.act_widths or (0,) * len(self.widths)
        chosen = allocation.act_bits or (0,) * len(allocation.bits)
        columns = {pair: k for k, pair in enumerate(zip(self.widths, acts, strict=True))}
        return [columns[pair] for pair in zip(allocation.bits, chosen, strict=True)]

    def options(self) -> list[list[int]]:
        """Allowed column indices of every group."""
        return [np.flatnonzero(row).tolist() for row in self.allowed]


def check_feasible(program: Program) -> None:
    """Refuse a budget that not even the cheapest widths keep.

    Raises:
        OmpqError: names the smallest feasible value of the budget.
    """
    refusals = [text for budget in program.budgets if (text := _refusal(program, budget))]
    if refusals:
        raise OmpqError("; ".join(refusals))


def _refusal(program: Program, budget: Budget) -> str:
    """Why a budget cannot be kept; empty where it can."""
    cost = np.where(program.allowed, budget.cost, np.iinfo(np.int64).max)
    least = int(cost.min(axis=1).sum()) + budget.constant
    if least <= budget.limit:
        return ""
    needed = math.ceil(least / budget.per_unit * 1e4) / 1e4
    widths = sorted({program.widths[k] for k in cost.argmin(axis=1)})
    return (
        f"a {budget.name} of {budget.limit / budget.per_unit:.5g} {budget.unit} cannot be "
        f"reached: the smallest feasible {budget.name} is {needed:.4f} {budget.unit}, "
        f"at {', '.join(map(str, widths))} bits"
    )


def exact_values(program: Program) -> list[list[int]]:
    """−price·exp(log_scale) as whole numbers on one common scale, L × K; larger is better.

    Python's integers hold any range, so that no group's price vanishes beside another's. The
    exponential is taken to 28 digits: with β near zero the scales differ by less than the last
    digit of a float64 near one. Equal scales give equal numbers.
    """
    scales = [_exponential(float(scale)) for scale in program.log_scale]
    parts = []
    for row, (mantissa, exponent) in zip(program.price, scales, strict=True):
        ratios = [(-float(price)).as_integer_ratio() for price in row]
        parts.append([(n * mantissa, exponent - d.bit_length() + 1) for n, d in ratios])
    lowest = min((e for row in parts for m, e in row if m), default=0)
    return [[m << (e - lowest) if m else 0 for m, e in row] for row in parts]


def _exponential(power: float) -> tuple[int, int]:
    """Whole m and e with exp(power) = m·2^e, to a relative error of 2^−92."""
    with localcontext(Context(prec=60)):
        exact, log_two = Decimal(power), Decimal(2).ln()
        exponent = math.floor(exact / log_two)
        mantissa = int((exact - exponent * log_two).exp() * 2**_EXPONENTIAL_BITS)
    return mantissa, exponent - _EXPONENTIAL_BITS
