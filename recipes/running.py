"""Run a recipe: its commands one after the other, and the figure that comes out of them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mixed_bit.feature_extract import run as run_search
from ompq.errors import OmpqError
from ompq.export.__main__ import run as run_export
from ompq.runtime import say
from PTQ.main_imagenet import run as run_ptq
from QAT.quant_train import run as run_qat
from recipes.commands import TOOLS, Command, Places, build_commands
from recipes.recipe import FIGURES, Expectation, Recipe

_RUN: dict[str, Callable[[argparse.Namespace], None]] = {
    "search": run_search,
    "ptq": run_ptq,
    "qat": run_qat,
    "export": run_export,
}


@dataclass(frozen=True)
class Finding:
    """What came out of a recipe.

    Attributes:
        recipe: The recipe.
        found: The figure that it expects, per cent; None where it expects none.
        minutes: How long it took.
    """

    recipe: Recipe
    found: float | None
    minutes: float

    @property
    def is_met(self) -> bool:
        """Tell whether the figure was met; so it is where none is expected."""
        expected = self.recipe.expectation
        return expected is None or (self.found is not None and expected.is_met_by(self.found))

    def describe(self) -> str:
        """Say in a line what was found beside what was expected."""
        told = f"{self.recipe.name}, {self.minutes:.1f} minutes"
        expected = self.recipe.expectation
        if expected is None:
            return f"{told}: done; no figure is expected"
        if self.found is None:
            return f"{told}: not met: the images have no labels to tell {FIGURES[expected.figure]}"
        verdict = "met" if self.is_met else f"not met, {expected.least:.2f} would be"
        return f"{told}: {self.found:.2f} %, expected {expected.describe()}: {verdict}"


def run_recipe(
    recipe: Recipe, places: Places | None = None, *, say: Callable[[str], None] = say
) -> Finding:
    """Run the stages of a recipe.

    Args:
        recipe: Recipe to run.
        places: Where its files are; None for where it says.
        say: Function that is told each command before it runs.

    Raises:
        OmpqError: A stage refuses what it is asked.
    """
    start = time.perf_counter()
    commands = build_commands(recipe, places or Places())
    for command in commands:
        say(f"$ {command}")
        _run_command(command)
    found = _read_figure(commands, recipe.expectation)
    return Finding(recipe, found, (time.perf_counter() - start) / 60)


def _run_command(command: Command) -> None:
    """Run a stage as if its command line had been typed."""
    tool = TOOLS[command.stage]
    with _typed([tool.command, *command.words]):
        parser = tool.build_parser()
        try:
            _RUN[command.stage](parser.parse_args(list(command.words)))
        except OmpqError as error:
            raise OmpqError(f"{tool.command}: {parser.in_flags(str(error))}") from error


@contextmanager
def _typed(words: Sequence[str]) -> Iterator[None]:
    """Let the process seem to be started by these words, which files of results tell."""
    before = sys.argv
    sys.argv = list(words)
    try:
        yield
    finally:
        sys.argv = before


def _read_figure(commands: Sequence[Command], expected: Expectation | None) -> float | None:
    """Read the expected figure of the last stage that measures it."""
    if expected is None:
        return None
    folder = [command.folder for command in commands if command.stage in ("ptq", "qat")][-1]
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    if expected.figure not in content:
        raise OmpqError(f"{folder} tells no {expected.figure}; expect another figure of the recipe")
    value = content[expected.figure]
    return None if value is None else float(value)
