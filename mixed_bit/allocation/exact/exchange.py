"""A better incumbent: two groups change at once, so that what one spends the other saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mixed_bit.allocation.exact.knapsack import Choice, Knapsack

# Changes to pair: their table of pairs has 90 000 entries.
_MOVES = 300
# Pairs to change one after the other; the first few bring nearly all of the gain.
_ROUNDS = 8


def exchange_pairs(
    problem: Knapsack, choice: Choice, losses: Mapping[int, Sequence[int]]
) -> Choice | None:
    """Change two groups at once, by the best pair, as long as the choice gets better.

    Args:
        problem: The program.
        choice: One column per group, where to start; it may break the budgets.
        losses: How far each open option of a group that may change is from the group's best at the
            current multipliers; only the changes that lose least are tried.

    Returns:
        The improved choice; None where no pair makes it keep the budgets.
    """
    for _ in range(_ROUNDS):
        better = _find_best_pair(problem, choice, losses)
        if better is None:
            break
        choice = better
    return choice if problem.fits(choice) else None


def _find_best_pair(
    problem: Knapsack, choice: Choice, losses: Mapping[int, Sequence[int]]
) -> Choice | None:
    moves = _find_moves(problem, choice, losses)
    if not moves:
        return None
    # The last move, of no group, changes nothing: paired with it, a change is made alone.
    groups = np.array([g for g, _ in moves] + [-1])
    gains = [problem.values[g][k] - problem.values[g][choice[g]] for g, k in moves] + [0]
    # 60 bits, so that the sum of two gains fits an int64. What that cuts off may cost a better
    # incumbent, never the proof.
    shift = max(max(map(abs, gains)).bit_length() - 60, 0)
    value = np.array([gain >> shift for gain in gains], dtype=np.int64)
    fits = groups[:, None] != groups[None]
    for cost, limit, used in zip(problem.costs, problem.limits, problem.used(choice), strict=True):
        extra = np.array([cost[g][k] - cost[g][choice[g]] for g, k in moves] + [0], dtype=np.int64)
        fits &= extra[:, None] + extra[None] <= limit - used
    total = np.where(fits, value[:, None] + value[None], np.iinfo(np.int64).min)
    pair = np.unravel_index(int(np.argmax(total)), total.shape)
    # A choice that breaks a budget takes any pair that mends it, even at a loss.
    if not fits[pair] or (total[pair] <= 0 and problem.fits(choice)):
        return None
    changed = dict(moves[i] for i in map(int, pair) if i < len(moves))
    return [changed.get(g, k) for g, k in enumerate(choice)]


def _find_moves(
    problem: Knapsack, choice: Choice, losses: Mapping[int, Sequence[int]]
) -> list[tuple[int, int]]:
    """Find the changes that lose least: pairs of a group and another option."""
    ranked = []
    for g, row in losses.items():
        held = dict(zip(problem.options[g], row, strict=True))
        if choice[g] in held:
            ranked += [(loss - held[choice[g]], g, k) for k, loss in held.items() if k != choice[g]]
    return [(g, k) for _, g, k in sorted(ranked)[:_MOVES]]
