"""The metric of a search that names none: `fisher`, or `orm` where that cannot be measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mixed_bit.problem import Problem
from mixed_bit.sensitivity import METRICS
from mixed_bit.sensitivity.evaluator import SensitivityEvaluator
from mixed_bit.settings import DEFAULT_METRIC, PAPER_METRIC, SearchSettings
from ompq.errors import OmpqError


def settle_metric(
    evaluator: SensitivityEvaluator, problem: Problem
) -> tuple[Problem, tuple[str, ...]]:
    """Settle the metric of a problem whose settings leave it open.

    Args:
        evaluator: Measures the groups of `problem`; what it measures here it keeps.
        problem: Groups, widths and settings.

    Returns:
        The problem, its settings with a metric, and what a user should know of the choice: one
        line, or none where the settings name a metric and nothing that it leaves out.
    """
    settings = problem.settings
    if settings.metric is not None:
        return problem, _note_unused(settings)
    metric, why = settings.chosen_metric, "no `metric` is named"
    if metric == PAPER_METRIC:
        why = f"the paper's, by {' and '.join(f'`{name}`' for name in settings.of_paper)}"
    else:
        obstacle = _find_obstacle(evaluator)
        if obstacle is not None:
            metric, why = PAPER_METRIC, f"`metric` {DEFAULT_METRIC} is not to be had: {obstacle}"
    note = f"sensitivities by {metric}: {why}"
    return problem.with_settings(replace(settings, metric=metric)), (note,)


def _note_unused(settings: SearchSettings) -> tuple[str, ...]:
    """Note what is given of orthogonality beside a metric that has nothing to do with it."""
    given = [name for name in settings.of_paper if name != "solver"]
    if METRICS[settings.chosen_metric].uses_orthogonality or not given:
        return ()
    named = " and ".join(f"`{name}`" for name in given)
    return (f"{named} without effect: `metric` {settings.metric} measures no orthogonality",)


def _find_obstacle(evaluator: SensitivityEvaluator) -> str | None:
    """Measure by the default, and tell what makes that impossible or misleading; None if nothing.

    A layer that no gradient reaches would seem to cost nothing.
    """
    if evaluator.ranks.world_size > 1:
        return "several processes share orthogonality alone"
    try:
        found = evaluator.sensitivity(DEFAULT_METRIC, 0.0)
    except OmpqError as error:
        return str(error)
    if not (np.isfinite(found.weights).all() and np.isfinite(found.activations).all()):
        return "its gradients are not finite"
    if not found.weights.any():
        return "its gradients are all zero"
    if found.unreached:
        return f"no gradient reaches {', '.join(found.unreached)}"
    return None
