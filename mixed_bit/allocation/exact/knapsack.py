"""The program in whole numbers, and the greedy steps every solver ends with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import gcd

Choice = list[int]


@dataclass
class Knapsack:
    """`values[g][k]` to maximise, `costs[j][g][k]` under `limits[j]`; all whole, of any size.

    `options[g]` are the columns of group g that are still open, by ascending width. `base[j]` is a
    price of budget j that is known beforehand (0 for most): a budget with one is all but certain to
    be spent to the end, and the value beyond that price is what is left to decide.
    """

    values: list[list[int]]
    costs: list[list[list[int]]]
    limits: list[int]
    options: list[list[int]]
    base: tuple[int, ...] = ()

    def value(self, choice: Sequence[int]) -> int:
        """Value of one column per group."""
        return sum(row[k] for row, k in zip(self.values, choice, strict=True))

    def used(self, choice: Sequence[int]) -> list[int]:
        """What a choice spends of every budget."""
        return [sum(row[k] for row, k in zip(cost, choice, strict=True)) for cost in self.costs]

    def fits(self, choice: Sequence[int]) -> bool:
        """Whether every budget is kept."""
        pairs = zip(self.used(choice), self.limits, strict=True)
        return all(used <= limit for used, limit in pairs)

    def stake(self, group: int) -> int:
        """What the choice within a group can gain at most."""
        values = [self.values[group][k] for k in self.options[group]]
        return max(values) - min(values)

    def step(self) -> int:
        """The largest number that divides the difference of any two choices' values."""
        rows = [[row[k] for k in o] for row, o in zip(self.values, self.options, strict=True)]
        return gcd(*(value - row[0] for row in rows for value in row)) or 1

    def residuals(self, group: int) -> list[int]:
        """Values of the open options beyond the base prices."""
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
        """The option of least cost, in the first budget before the others."""
        return min(self.options[group], key=lambda k: ([c[group][k] for c in self.costs], k))

    def copy(self) -> Knapsack:
        """One whose options can be narrowed without touching this one's."""
        return replace(self, options=[list(options) for options in self.options])


def fill(problem: Knapsack, choice: Choice, groups: Iterable[int] | None = None) -> Choice:
    """Raise single groups, the best value per share of the budgets first, while they fit."""
    choice = list(choice)
    groups = range(len(choice)) if groups is None else list(groups)
    room = [limit - used for limit, used in zip(problem.limits, problem.used(choice), strict=True)]
    moved = True
    while moved:
        moved = False
        for _, g, k in sorted(_raises(problem, choice, room, groups), reverse=True):
            if problem.values[g][k] <= problem.values[g][choice[g]]:
                continue
            extra = _extra(problem, g, choice[g], k)
            if all(e <= r for e, r in zip(extra, room, strict=True)):
                room = [r - e for r, e in zip(room, extra, strict=True)]
                choice[g], moved = k, True
    return choice


def _raises(
    problem: Knapsack, choice: Choice, room: list[int], groups: Iterable[int]
) -> list[tuple[int, int, int]]:
    """(value per cost in fixed point, group, option) of every gainful step that fits alone."""
    steps = []
    for g in groups:
        held = problem.values[g][choice[g]]
        for k in problem.options[g]:
            if (gain := problem.values[g][k] - held) > 0:
                extra = _extra(problem, g, choice[g], k)
                if all(e <= r for e, r in zip(extra, room, strict=True)):
                    steps.append((_rate(gain, extra, problem.limits), g, k))
    return steps


def _extra(problem: Knapsack, group: int, old: int, new: int) -> list[int]:
    return [cost[group][new] - cost[group][old] for cost in problem.costs]


def _rate(gain: int, extra: Sequence[int], limits: Sequence[int]) -> int:
    """Gain per share of the budgets, scaled to a whole number."""
    share = sum(
        max(e, 0) * (1 << 40) // max(limit, 1) for e, limit in zip(extra, limits, strict=True)
    )
    return (gain << 40) // max(share, 1)


def settle_ties(problem: Knapsack, choice: Choice) -> Choice:
    """Of choices of equal value, the one that spends more and gives later groups more.

    Widths that can be raised at no loss of value are raised, the last group first; groups that are
    alike in every value and cost hand their widths over to the later ones.
    """
    choice = list(choice)
    room = [limit - used for limit, used in zip(problem.limits, problem.used(choice), strict=True)]
    for g in reversed(range(len(choice))):
        for k in reversed(problem.options[g]):
            extra = _extra(problem, g, choice[g], k)
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
