"""The proven optimum of the program, in whole numbers.

The program is a multiple-choice knapsack. With multipliers μ ≥ 0 on the budgets,
Σ_g max_k (value − μ·cost) + μ·limit bounds every choice from above, whatever μ; an option whose
use lowers that bound to the incumbent's value is closed. A dynamic program runs over the groups
that still have a choice, those with most at stake first, and drops every partial choice that one
of several multiplier vectors shows to be no better than the incumbent. All bounds are exact or
rounded to the safe side, so values may differ by a billionth or by a thousand orders of magnitude:
each round looks at the groups whose stakes are within 2^26 of each other and bounds the rest.

Why nothing shorter stands here: two shorter solvers were tried. HiGHS's integer solver, tier by
tier (the groups of largest stakes first, then the next with those choices fixed), gave the optimum
of 70 out of 70 programs of 5 to 60 groups and failed with 1000. At β = 1 and one budget it called
ten tiers optimal and the eleventh infeasible, since an earlier one had overspent the whole-number
budget within the tolerance; at β = 1e-9 it ended below the optimum. Nor does it prove anything
exactly, for its bound is a float. This search with float64 windows instead of whole numbers
gave the optimum and the proof of 280 out of 280 random programs of 5 to 60 groups in about as much
time (medians of 0.02 to 0.23 s) with 205 lines less, but did not finish within 40 s a program of
1000 groups and two budgets at β = 1e-6 that this one proves in 5 s. Pair exchange (`exchange`)
earns its 60 lines: without it 1000 groups with two budgets take 13 s instead of 2 at
β = 1e-3, and others do not finish.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mixed_bit.allocation.exact.exchange import exchange_pairs
from mixed_bit.allocation.exact.frontier import Frontier, Ints, Objects, Stage
from mixed_bit.allocation.exact.knapsack import Choice, Knapsack, fill
from mixed_bit.allocation.exact.relaxation import (
    Multipliers,
    combine_roundings,
    count_tier,
    relax,
)
from mixed_bit.allocation.exact.tighten import tighten

# Frontier widths to try in turn; a frontier that was never cut short is a proof.
_BEAMS = (300, 6_000, 120_000)
# Bits of the widest window in units of the losses, so that sums of losses fit an int64.
_LOSS_BITS = 40
# Multipliers to try on either side of a budget's own.
_FAN = 6
# Groups to extend by before the multipliers are taken anew, for what the states have left.
_STRIDE = 8


def prove(problem: Knapsack, incumbent: Choice | None) -> tuple[Choice | None, bool]:
    """Find the best choice, and prove it unless the search grows too large.

    Args:
        problem: The program.
        incumbent: A choice that keeps the budgets; None where none is known.

    Returns:
        A choice, None where there is none, and whether that is proven.
    """
    tight, best = tighten(problem, prove, incumbent)
    for beam in _BEAMS:
        search = _Search(tight, best, beam)
        best = search.run()
        tight = search.narrowed
        if search.complete:
            return best, True
    return best, False


class _Search:
    """One pass with a bounded frontier.

    Args:
        problem: The program; it is left alone.
        incumbent: A choice that keeps the budgets; None where none is known.
        beam: The most states that the frontier may hold.

    Attributes:
        problem: A copy of the program, whose options are closed on the way.
        narrowed: The program without the options that were closed before any partial choice was
            made, and so for good.
        best: The best choice so far; None where none is known.
        complete: Whether the frontier was never cut short.
    """

    def __init__(self, problem: Knapsack, incumbent: Choice | None, beam: int) -> None:
        self.problem = problem.copy()
        self.narrowed = self.problem
        self.best = incumbent
        self.complete = True
        self._beam = beam
        self._settled: dict[int, int] = {}
        self._limits = np.array(problem.limits, dtype=np.int64)
        # Every choice's value is the same modulo this.
        self._step = problem.step()
        self._target = problem.value(incumbent) if incumbent else self._undercut_all()
        start = np.zeros((1, len(problem.limits)), dtype=np.int64)
        self._states = Frontier(start, _pack_objects([0]), np.zeros((1, 1), dtype=np.int64))
        self._open = list(range(len(problem.options)))

    def run(self) -> Choice | None:
        """Search, and return the best choice found: the incumbent where nothing beats it."""
        self._settle()
        while self._open and len(self._states):
            chunk = self._open[: count_tier(self.problem, self._open)]
            if not self._run_round(chunk):
                return self.best
        if len(self._states):
            self._offer(self._complete_choice(int(np.argmax(self._states.value)), {}))
        return self.best

    def _undercut_all(self) -> int:
        """Compute a value that every choice beats."""
        rows = zip(self.problem.values, self.problem.options, strict=True)
        return sum(min(row[k] for k in options) for row, options in rows) - self._step

    def _settle(self) -> None:
        """Fold groups without a choice into the states; the others, the largest stake first."""
        for g in [g for g in self._open if len(self.problem.options[g]) == 1]:
            k = self.problem.options[g][0]
            self._settled[g] = k
            costs = np.array([cost[g][k] for cost in self.problem.costs], dtype=np.int64)
            states = self._states
            value = states.value + self.problem.values[g][k]
            self._states = Frontier(states.used + costs, value, states.loss, states.trail)
        remaining = [g for g in self._open if g not in self._settled]
        # Among equal stakes the most costly first: what they leave of the budgets decides most.
        order = {g: (-self.problem.stake(g), -self._measure_cost_range(g), g) for g in remaining}
        self._open = sorted(remaining, key=order.__getitem__)

    def _measure_cost_range(self, group: int) -> int:
        costs = [self.problem.costs[0][group][k] for k in self.problem.options[group]]
        return max(costs) - min(costs)

    def _run_round(self, chunk: list[int]) -> bool:
        """Close options of a chunk or extend the frontier by it; False where nothing is left."""
        multipliers, starts = self._relax(chunk)
        bound = _Bound.build(self.problem, chunk, self._open[len(chunk) :], multipliers)
        if len(self._states) == 1:
            # With many states, the frontier itself explores what exchanges would.
            for start in starts:
                self._offer(exchange_pairs(self.problem, start, bound.losses))
        windows = self._measure_windows(bound)
        alive = np.flatnonzero(windows > 0)
        if not len(alive):
            return False
        self._states = self._states.take(alive)
        # What is hopeless for the only state is hopeless: it is closed, and the relaxation, better
        # without it, is solved again before anything is extended.
        if len(alive) == 1 and self._close_options(bound, windows[alive[0]]):
            self._settle()
            return True
        self._extend(bound, chunk)
        self._open = self._open[_STRIDE:] if len(chunk) > _STRIDE else self._open[len(chunk) :]
        return True

    def _measure_windows(self, bound: _Bound) -> Objects:
        """Measure how far each state's upper bound lies above the next value that is better.

        Returns:
            One whole number per state, in the bound's scale; not positive where that value is out
            of reach.
        """
        states, multipliers = self._states, bound.multipliers
        # All values are alike modulo the step: between the target and this one there is none.
        better = states.value - (self._target + self._step)
        windows = better * (1 << multipliers.shift) + (bound.top + 1)
        for weight, limit, used in zip(
            multipliers.weights, self.problem.limits, states.used.T, strict=True
        ):
            windows = windows + weight * (limit - used.astype(object))
        return np.asarray(windows)

    def _relax(self, chunk: list[int]) -> tuple[Multipliers, list[Choice]]:
        """Solve the relaxation for what the most promising state has left.

        Returns:
            Its multipliers, and the choices that it rounds to.
        """
        index = int(np.argmin(self._states.loss[:, 0]))
        rest = self._open[len(chunk) :]
        room = [
            int(limit - used) - sum(min(cost[g][k] for k in self.problem.options[g]) for g in rest)
            for limit, used, cost in zip(
                self._limits, self._states.used[index], self.problem.costs, strict=True
            )
        ]
        relaxed = relax(self.problem, chunk, room)
        if relaxed is None:
            # Multipliers of 0 give a bound as well, if a loose one.
            return Multipliers((0,) * len(room), 0), []
        rounded = combine_roundings(self.problem, chunk, relaxed)
        choices = [self._complete_choice(index, chosen) for chosen in rounded]
        for choice in choices:
            self._offer(choice)
        return relaxed.multipliers, choices

    def _complete_choice(self, index: int, chosen: dict[int, int]) -> Choice:
        """Complete one state by `chosen`, then by the cheapest options, and fill it up."""
        chosen = {**self._settled, **self._states.trace_choice(index), **chosen}
        for g in self._open:
            chosen.setdefault(g, self.problem.cheapest(g))
        choice = [chosen[g] for g in range(len(self.problem.options))]
        return fill(self.problem, choice, self._open) if self.problem.fits(choice) else choice

    def _offer(self, choice: Choice | None) -> None:
        """Make a choice the incumbent if it keeps the budgets and beats the present one."""
        if choice is None or not self.problem.fits(choice):
            return
        if self.problem.value(choice) > self._target:
            self.best, self._target = choice, self.problem.value(choice)

    def _close_options(self, bound: _Bound, window: int) -> bool:
        """Close the options that cannot beat the incumbent, and tell whether there were any."""
        closed = False
        for g, losses in bound.losses.items():
            options = self.problem.options[g]
            kept = [k for k, loss in zip(options, losses, strict=True) if loss < window]
            closed |= len(kept) < len(options)
            self.problem.options[g] = kept
        return closed

    def _extend(self, base: _Bound, chunk: list[int]) -> None:
        """Extend the frontier by the first groups of a chunk, one after the other."""
        # Options closed from now on are closed for the states that are left, not for good.
        if self.narrowed is self.problem:
            self.narrowed = self.problem.copy()
        rest = self._open[len(chunk) :]
        fan = [
            _Bound.build(self.problem, chunk, rest, multipliers)
            for multipliers in _fan_out(self.problem, chunk, base)
        ]
        # Losses are rounded down and what is allowed is rounded up: a state that is dropped could
        # not have beaten the incumbent.
        windows = [self._measure_windows(bound) for bound in fan]
        widest = [max(column) for column in windows]
        units = [max(1, top >> _LOSS_BITS) for top in widest]
        loss = [_clip((top - w) // u) for w, top, u in zip(windows, widest, units, strict=True)]
        allowed = _clip([-(-top // unit) for top, unit in zip(widest, units, strict=True)])
        states = self._states
        self._states = Frontier(states.used, states.value, np.stack(loss, axis=1), states.trail)
        for stage in self._build_stages(fan, units, chunk, rest):
            self._states = self._states.extend(stage, self._limits, allowed)
            # A pass that proves nothing any more is only worth its incumbents.
            beam = self._beam if self.complete else min(self._beam, _BEAMS[1])
            if len(self._states) > beam:
                self.complete = False
                self._states = self._states.keep_most_promising(beam, allowed)
            if not len(self._states):
                return

    def _build_stages(
        self, fan: Sequence[_Bound], units: Sequence[int], chunk: list[int], rest: list[int]
    ) -> Iterator[Stage]:
        """Yield the first groups of a chunk as the frontier sees them.

        Args:
            fan: F bounds of the chunk.
            units: What one of the frontier's losses is, in each bound's scale.
            chunk: Indices of the groups that the bounds are about.
            rest: Indices of the groups after the chunk.
        """
        problem = self.problem
        least = {
            g: np.array([min(c[g][k] for k in problem.options[g]) for c in problem.costs], np.int64)
            for g in (*chunk, *rest)
        }
        needed = sum(least.values(), np.zeros(len(problem.limits), dtype=np.int64))
        for g in chunk[:_STRIDE]:
            needed = needed - least[g]
            options = problem.options[g]
            losses = [
                [bound.losses[g][i] // unit for bound, unit in zip(fan, units, strict=True)]
                for i in range(len(options))
            ]
            yield Stage(
                group=g,
                columns=tuple(options),
                costs=np.array([[c[g][k] for c in problem.costs] for k in options], np.int64),
                values=_pack_objects([problem.values[g][k] for k in options]),
                losses=_clip(losses),
                still_needed=needed,
            )


@dataclass(frozen=True)
class _Bound:
    """Upper bound of all that some groups can still add, by one multiplier vector.

    Attributes:
        multipliers: The multipliers.
        losses: By how much each open option of a chunk's group falls short of the group's best at
            these multipliers, in units of 2^−shift.
        top: Worth of the best options, in these units; the groups after the chunk count with their
            highest value and least cost.
    """

    multipliers: Multipliers
    losses: dict[int, list[int]]
    top: int

    @classmethod
    def build(
        cls, problem: Knapsack, chunk: Sequence[int], rest: Sequence[int], multipliers: Multipliers
    ) -> _Bound:
        """Bound what a chunk of groups and the rest after it can add."""
        losses, top = {}, 0
        for g in chunk:
            worth = [
                multipliers.worth(problem.values[g][k], [cost[g][k] for cost in problem.costs])
                for k in problem.options[g]
            ]
            best = max(worth)
            losses[g] = [best - value for value in worth]
            top += best
        for g in rest:
            options = problem.options[g]
            least = [min(cost[g][k] for k in options) for cost in problem.costs]
            # Looser than for the chunk, and enough: their stakes are below a 2^26th of its largest.
            top += multipliers.worth(max(problem.values[g][k] for k in options), least)
        return cls(multipliers, losses, top)


def _fan_out(problem: Knapsack, chunk: Sequence[int], base: _Bound) -> list[Multipliers]:
    """Build multipliers around those of a bound, one budget's changed at a time.

    They are taken where an option of a group overtakes its best one: with less or more room than
    the base expects, the relaxation's multipliers would lie there.

    Returns:
        The bound's own multipliers and the others, each once.
    """
    own = base.multipliers
    fan = [own]
    for j, cost in enumerate(problem.costs):
        # Down to 0 in any case: for states that leave much of this budget unspent.
        down: list[int] = [own.weights[j]]
        up: list[int] = []
        for g in chunk:
            losses, options = base.losses[g], problem.options[g]
            best = cost[g][options[losses.index(0)]]
            for k, loss in zip(options, losses, strict=True):
                if loss and cost[g][k] != best:
                    (down if cost[g][k] > best else up).append(loss // abs(cost[g][k] - best))
        for sign, moves in ((-1, sorted(down)), (1, sorted(up))):
            for move in _pick_spread(moves):
                weights = list(own.weights)
                weights[j] = max(0, weights[j] + sign * move)
                fan.append(Multipliers(tuple(weights), own.shift))
    return list(dict.fromkeys(fan))


def _pick_spread(moves: list[int]) -> list[int]:
    """Pick a few of the sorted moves, denser among the small ones, and the largest.

    >>> _pick_spread(list(range(100)))
    [0, 1, 3, 7, 15, 31, 99]
    """
    picks = sorted({min(2**i - 1, len(moves) - 1) for i in range(_FAN)} | {len(moves) - 1})
    return [moves[i] for i in picks] if moves else []


def _pack_objects(values: Sequence[int]) -> np.ndarray:
    # Python's integers, even where they are small: sums of int64 would overflow.
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _clip(values: Sequence[object] | Objects) -> Ints:
    """Clip whole numbers of any size to an int64.

    What is too large stays larger than any window, and sums of clipped values do not overflow.
    """
    clipped = np.clip(np.array(values, dtype=object), -(1 << 50), 1 << 50)
    return np.asarray(clipped.astype(np.int64))
