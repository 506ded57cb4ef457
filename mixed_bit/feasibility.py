"""What now? Why budgets cannot be kept, and the nearest ones that can, before images are read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mixed_bit.allocation.program import Budget, Program
from mixed_bit.problem import Problem
from mixed_bit.settings import SearchSettings
from ompq.assignment import PINNED_BITS
from ompq.errors import OmpqError

NARROWEST = 2
# Budgets that the widths of activations count in.
_BY_ACTIVATIONS = ("bops_g", "act_memory_kb")
# Pins that a message names, those of most effect first.
_NAMED = 6
# Halvings that find the least memory beside other budgets: to a thousandth of what there is.
_HALVINGS = 10


@dataclass(frozen=True)
class Floor:
    """The least that widths can make of a budget.

    Attributes:
        amount: The least, in whole units of the budget.
        budget: The budget; of several steps that share one, the step of most.
    """

    amount: int
    budget: Budget

    @property
    def is_kept(self) -> bool:
        """Tell whether the budget allows the least."""
        return self.amount <= self.budget.limit

    def __str__(self) -> str:
        return _show(self.amount, self.budget)


def check_feasible(problem: Problem) -> None:
    """Refuse budgets that no widths keep, one by one or together.

    Raises:
        OmpqError: Names each one's least value, and what it would be without a pin, with more
            widths, or without another budget.
    """
    program = problem.build_empty_program()
    floors = find_floors(program)
    told = [_explain(problem, floor) for floor in floors.values() if not floor.is_kept]
    if not told:
        told = _explain_conflict(problem, program)
    if told:
        raise OmpqError("; ".join(told))


def find_floors(program: Program) -> dict[str, Floor]:
    """Find the least that the cheapest widths make of every budget, by its field."""
    found: dict[str, Floor] = {}
    for budget in program.budgets:
        floor = Floor(budget.find_least(program.allowed), budget)
        if budget.field not in found or floor.amount > found[budget.field].amount:
            found[budget.field] = floor
    return found


def _show(amount: int, budget: Budget) -> str:
    # Rounded up: the value that is printed shall be feasible when it is given back.
    return f"{math.ceil(amount / budget.per_unit * 1e4) / 1e4:.4f}"


def _explain(problem: Problem, floor: Floor) -> str:
    """Say that a budget is below its least, and what that is if one thing is loosened."""
    budget, settings = floor.budget, problem.settings
    bound = "these widths and pins" if settings.pins else "these widths"
    place = f", at {budget.place}" if budget.place else ""
    limit = getattr(settings, budget.field)
    source = _name_source(settings, budget.field)
    text = f"`{budget.field}` {limit:g}{source} is below {floor}, the least with {bound}{place}"
    pins = sorted(_loosen_pins(problem, floor), key=lambda pair: pair[1].amount)
    told = [f"{name} {other}" for name, other in pins[:_NAMED]]
    if len(pins) > _NAMED:
        told[-1] += f" (and {len(pins) - _NAMED} more `pins`)"
    told += [f"{name} {other}" for name, other in _loosen_widths(problem, floor)]
    return "; ".join([text, *told])


def _name_source(settings: SearchSettings, field: str) -> str:
    """Name the target that a budget comes from; empty where the user gave it."""
    target = settings.target
    if target is None:
        return ""
    memory = {"size_mb": target.flash_mb, "act_memory_kb": target.act_memory_kb}
    return f" of target {target.name}" if memory.get(field) == getattr(settings, field) else ""


def _loosen_pins(problem: Problem, floor: Floor) -> Iterator[tuple[str, Floor]]:
    """Yield what every pin costs: its name, and the least without it, where that is less."""
    settings = problem.settings
    for pattern, width in settings.pins.items():
        pins = {name: bits for name, bits in settings.pins.items() if name != pattern}
        found = _find_less(problem, floor, replace(settings, pins=pins))
        if found is not None:
            yield f"without `pins` {pattern}={width}", found


def _loosen_widths(problem: Problem, floor: Floor) -> Iterator[tuple[str, Floor]]:
    """Yield what sets of widths cost: a name, and the least with more widths, if that is less."""
    settings = problem.settings
    by_layer = settings.candidate_bits_by_layer
    for pattern, widths in by_layer.items():
        others = {name: given for name, given in by_layer.items() if name != pattern}
        found = _find_less(problem, floor, replace(settings, candidate_bits_by_layer=others))
        if found is not None:
            listed = ",".join(map(str, widths))
            yield f"without `candidate_bits_by_layer` {pattern}={listed}", found
    everything = tuple(sorted({NARROWEST, *settings.widths}))
    found = _find_less(problem, floor, replace(settings, candidate_bits=everything))
    if found is not None:
        yield f"with widths from {NARROWEST} on", found
    least = min(settings.widths)
    kept = [name for name, widths in _list_kept(problem) if widths == (PINNED_BITS,)]
    pins = {**dict.fromkeys(kept, least), **settings.pins}
    found = _find_less(problem, floor, replace(settings, pins=pins)) if kept else None
    if found is not None:
        yield f"with the first and the last layer at {least} bits by `pins`", found
    if settings.target is not None:
        free = replace(settings, target=None, candidate_bits=everything)
        found = _find_less(problem, floor, free)
        if found is not None:
            yield f"with other widths than target {settings.target.name} has", found
    narrow = _narrow_activations(settings) if floor.budget.field in _BY_ACTIVATIONS else None
    found = _find_less(problem, floor, narrow) if narrow else None
    if found is not None:
        yield f"with `act_bits` {NARROWEST}", found


def _list_kept(problem: Problem) -> list[tuple[str, tuple[int, ...]]]:
    """List the groups outside of the bit list, and the width that each keeps."""
    listed = {group.name for group in problem.listed}
    names = [group.name for group in problem.graph.groups if group.name not in listed]
    return [(name, problem.choices.widths[name]) for name in names]


def _narrow_activations(settings: SearchSettings) -> SearchSettings | None:
    """Return the settings with the narrowest activations; None where nothing is narrower."""
    limited = settings.target is not None and settings.target.activation_bits is not None
    if limited:
        return None
    if settings.candidate_act_bits:
        wider = tuple(sorted({NARROWEST, *settings.candidate_act_bits}))
        same = wider == settings.act_widths
        return None if same else replace(settings, candidate_act_bits=wider)
    return None if settings.act_bits == NARROWEST else replace(settings, act_bits=NARROWEST)


def _find_less(problem: Problem, floor: Floor, settings: SearchSettings) -> Floor | None:
    """Find the least of a budget under other settings; None where it is no less."""
    try:
        program = problem.loosen(settings).build_empty_program()
    except OmpqError:
        return None  # a table of times may lack these widths
    found = find_floors(program)[floor.budget.field]
    return found if found.amount < floor.amount else None


def _explain_conflict(problem: Problem, program: Program) -> list[str]:
    """Say which budgets exclude each other, and the least of each beside the others."""
    fields = list(dict.fromkeys(budget.field for budget in program.budgets))
    if len(fields) < 2 or _is_kept_by_cheapest(program):
        return []
    proving = problem.with_settings(replace(problem.settings, solver="ilp"))
    least: dict[str, tuple[int | None, int]] = {}
    for field in fields:
        amount, limit = least[field] = _find_least_beside(proving, program, field)
        if amount is not None and amount <= limit:
            return []
    names = " and ".join(f"`{field}` {getattr(problem.settings, field):g}" for field in fields)
    told = [f"{names} cannot be kept together, though each alone can"]
    for field, (amount, _) in least.items():
        if amount is not None:
            budget = next(budget for budget in program.budgets if budget.field == field)
            others = " and ".join(f"`{other}`" for other in fields if other != field)
            told.append(f"`{field}` beside {others} is {_show(amount, budget)} at least")
    return ["; ".join(told)]


def _is_kept_by_cheapest(program: Program) -> bool:
    """Tell whether the cheapest widths by one of the budgets keep all of them."""
    for budget in program.budgets:
        cost = np.where(program.allowed, budget.cost, np.iinfo(np.int64).max)
        choice = cost.argmin(axis=1).tolist()
        if all(other.spent(choice) <= other.limit for other in program.budgets):
            return True
    return False


def _find_least_beside(problem: Problem, program: Program, field: str) -> tuple[int | None, int]:
    """Find the least of one budget while the others are kept, and its limit; None without any."""
    own = [budget for budget in program.budgets if budget.field == field]
    others = tuple(budget for budget in program.budgets if budget.field != field)
    limit = own[0].limit
    try:
        if len(own) == 1:
            costs = own[0].cost.astype(np.float64)
            found = problem.solve(replace(program, sensitivity=costs, budgets=others))
            return own[0].spent(program.choice(found)), limit
        return _halve_memory(problem, program, own, others), limit
    except OmpqError:
        return None, limit


def _halve_memory(
    problem: Problem, program: Program, steps: list[Budget], others: tuple[Budget, ...]
) -> int:
    """Find the least limit of all steps, by halving, while the other budgets are kept."""
    free = problem.solve(replace(program, budgets=others))
    high = max(step.spent(program.choice(free)) for step in steps)
    low = max(step.find_least(program.allowed) for step in steps)
    for _ in range(_HALVINGS):
        middle = (low + high) // 2
        tried = tuple(replace(step, limit=middle) for step in steps)
        try:
            found = problem.solve(replace(program, budgets=(*others, *tried)))
        except OmpqError:
            low = middle
            continue
        high = max(step.spent(program.choice(found)) for step in steps)
    return high
