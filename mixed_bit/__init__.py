"""From a trained network to the bit width of every layer: orthogonality and an integer program.

    search              a network, some images and a budget → the width of every layer
    SearchSettings      metric, budgets, candidate widths
    SearchResult        the widths and what they came from
    METRICS             what a width costs a layer, by name
    build_bit_config    a result as the content of `bit_config.json`
    draw_result         a result as a picture
    build_evaluator     all metrics on the same images, each measured once
    OutcomeEvaluator    what an allocation does to the output
    compare_candidates  every way to allocate bits at equal size; print_comparison, draw_comparison

Below it: `sensitivity` (what a width costs), `allocation` (which widths are best), `comparison`
(what allocations do to the output), `latency` (tables of measured times).
"""

from typing import TYPE_CHECKING

from ompq._face import attach

if TYPE_CHECKING:
    from mixed_bit.bit_search import SearchResult, build_bit_config, build_evaluator, search
    from mixed_bit.comparison.compare_methods import (
        Comparison,
        ComparisonRow,
        compare_candidates,
        draw_comparison,
        print_comparison,
    )
    from mixed_bit.comparison.outcome import OutcomeEvaluator
    from mixed_bit.report import draw_result
    from mixed_bit.sensitivity import METRICS
    from mixed_bit.settings import SearchSettings

__all__ = [
    "METRICS",
    "Comparison",
    "ComparisonRow",
    "OutcomeEvaluator",
    "SearchResult",
    "SearchSettings",
    "build_bit_config",
    "build_evaluator",
    "compare_candidates",
    "draw_comparison",
    "draw_result",
    "print_comparison",
    "search",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "mixed_bit.bit_search": "SearchResult build_bit_config build_evaluator search",
        "mixed_bit.comparison.compare_methods": "Comparison ComparisonRow compare_candidates "
        "draw_comparison print_comparison",
        "mixed_bit.comparison.outcome": "OutcomeEvaluator",
        "mixed_bit.report": "draw_result",
        "mixed_bit.sensitivity": "METRICS",
        "mixed_bit.settings": "SearchSettings",
    },
)
