"""The program in whole numbers, and the greedy steps every solver ends with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import gcd

Choice = list[int]


@dataclass
class Knapsack:
    """The allocation program in whole numbers of any size: a multiple-choice knapsack.

    Attributes:
        values: `values[g][k]` is the value of group g in column k; their sum is maximised.
        costs: `costs[j][g][k]` is what group g costs of budget j in column k.
        limits: The most that all groups may cost of each budget.
        options: `options[g]` are the columns of group g that are still open, by ascending width.
        base: Price of each budget, in value per unit of cost, that is known beforehand (0 for
            most; empty where no budget has one). A budget with one is all but certain to be spent
            to the end, and the value beyond that price is what is left to decide.
    """

    values: list[list[int]]
    costs: list[list[list[int]]]
    limits: list[int]
    options: list[list[int]]
    base: tuple[int, ...] = ()

    def value(self, choice: Sequence[int]) -> int:
        """Add up the values of one column per group."""
        return sum(row[k] for row, k in zip(self.values, choice, strict=True))

    def used(self, choice: Sequence[int]) -> list[int]:
        """Add up what one column per group spends of every budget."""
        return [sum(row[k] for row, k in zip(cost, choice, strict=True)) for cost in self.costs]

    def fits(self, choice: Sequence[int]) -> bool:
        """Tell whether a choice keeps every budget."""
        pairs = zip(self.used(choice), self.limits, strict=True)
        return all(used <= limit for used, limit in pairs)

    def stake(self, group: int) -> int:
        """Return the most that the choice within a group can gain."""
        values = [self.values[group][k] for k in self.options[group]]
        return max(values) - min(values)

    def step(self) -> int:
        """Find the largest number that divides the difference of any two choices' values.

        >>> Knapsack(values=[[0, 6], [1, 10]], costs=[], limits=[], options=[[0, 1], [0, 1]]).step()
        3
        """
        rows = [[row[k] for k in o] for row, o in zip(self.values, self.options, strict=True)]
        return gcd(*(value - row[0] for row in rows for value in row)) or 1

    def residuals(self, group: int) -> list[int]:
        """Return the values of a group's open options less their costs at the base prices."""
        # Not strict: most programs have no base prices at all.
        priced = [
            (price, cost[group])
            for price, cost in zip(self.base, self.costs, strict=False)
            if price
        ]
        return [
            self.values[group][k] - sum(price * cost[k] for price, cost in priced)
            for k in self.options[group]
        ]

    def cheapest(self, group: int) -> int:
        """Find a group's option of least cost, by the first budget before the others."""
        return min(self.options[group], key=lambda k: ([c[group][k] for c in self.costs], k))

    def copy(self) -> Knapsack:
        """Copy the program, so that the copy's options can be narrowed without touching these."""
        return replace(self, options=[list(options) for options in self.options])


def fill(problem: Knapsack, choice: Choice, groups: Iterable[int] | None = None) -> Choice:
    """Raise single groups, the best value per share of the budgets first, while they fit.

    Args:
        problem: The program.
        choice: One column per group, where to start; it is left alone.
        groups: Indices of the groups that may be raised; None for all.

    >>> two = Knapsack(values=[[0, 2], [0, 3]], costs=[[[1, 2], [1, 2]]], limits=[3],
    ...                options=[[0, 1], [0, 1]])
    >>> fill(two, [0, 0])
    [0, 1]
    """
    choice = list(choice)
    groups = range(len(choice)) if groups is None else list(groups)
    room = [limit - used for limit, used in zip(problem.limits, problem.used(choice), strict=True)]
    moved = True
    while moved:
        moved = False
        # Ranked once per sweep, not after every step: the sweeps go on until none moves anything.
        for _, g, k in sorted(_find_raises(problem, choice, room, groups), reverse=True):
            if problem.values[g][k] <= problem.values[g][choice[g]]:
                continue
            extra = _compute_extra(problem, g, choice[g], k)
            if all(e <= r for e, r in zip(extra, room, strict=True)):
                room = [r - e for r, e in zip(room, extra, strict=True)]
                choice[g], moved = k, True
    return choice


def _find_raises(
    problem: Knapsack, choice: Choice, room: list[int], groups: Iterable[int]
) -> list[tuple[int, int, int]]:
    """Find every gainful step that fits alone.

    Returns:
        Value per share of the budgets in fixed point, group and option of each.
    """
    steps = []
    for g in groups:
        held = problem.values[g][choice[g]]
        for k in problem.options[g]:
            if (gain := problem.values[g][k] - held) > 0:
                extra = _compute_extra(problem, g, choice[g], k)
                if all(e <= r for e, r in zip(extra, room, strict=True)):
                    steps.append((_compute_rate(gain, extra, problem.limits), g, k))
    return steps


def _compute_extra(problem: Knapsack, group: int, old: int, new: int) -> list[int]:
    return [cost[group][new] - cost[group][old] for cost in problem.costs]


def _compute_rate(gain: int, extra: Sequence[int], limits: Sequence[int]) -> int:
    """Compute the gain per share of the budgets, scaled to a whole number."""
    # Whole numbers of 40 binary places: a float would overflow where gains have a thousand digits.
    share = sum(
        max(e, 0) * (1 << 40) // max(limit, 1) for e, limit in zip(extra, limits, strict=True)
    )
    return (gain << 40) // max(share, 1)


def settle_ties(problem: Knapsack, choice: Choice) -> Choice:
    """Pick, among choices of equal value, one that spends more and gives later groups more.

    Widths that can be raised at no loss of value are raised, the last group first; groups that are
    alike in every value and cost hand their widths over to the later ones.

    Args:
        problem: The program.
        choice: One column per group that keeps the budgets; it is left alone.
    """
    choice = list(choice)
    room = [limit - used for limit, used in zip(problem.limits, problem.used(choice), strict=True)]
    for g in reversed(range(len(choice))):
        for k in reversed(problem.options[g]):
            extra = _compute_extra(problem, g, choice[g], k)
            equal = problem.values[g][k] == problem.values[g][choice[g]]
            if k > choice[g] and equal and all(e <= r for e, r in zip(extra, room, strict=True)):
                room = [r - e for r, e in zip(room, extra, strict=True)]
                choice[g] = k
    alike: dict[tuple[object, ...], list[int]] = {}
    for g, options in enumerate(problem.options):
        rows = [tuple(row[g][k] for k in options) for row in (problem.values, *problem.costs)]
        alike.setdefault((tuple(options), *rows), []).append(g)
    for members in alike.values():
        for g, k in zip(members, sorted(choice[g] for g in members), strict=True):
            choice[g] = k
    return choice
