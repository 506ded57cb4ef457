"""Run a recipe: its commands one after the other, and the figure that comes out of them."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mixed_bit.feature_extract import run as run_search
from ompq.errors import OmpqError
from ompq.export.__main__ import run as run_export
from ompq.runtime import say
from PTQ.main_imagenet import run as run_ptq
from QAT.quant_train import run as run_qat
from recipes.commands import BITS, TOOLS, Command, Places, build_commands
from recipes.recipe import FIGURES, Expectation, Recipe
from recipes.spelling import flag

_RUN: dict[str, Callable[[argparse.Namespace], None]] = {
    "search": run_search,
    "ptq": run_ptq,
    "qat": run_qat,
    "export": run_export,
}
# What a stage writes at its end, with its command in it.
_RESULTS = {"search": BITS, "ptq": "results.json", "qat": "results.json"}
_RESUME = flag("resume")
_RESUMED = ("ptq", "qat")


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
    recipe: Recipe,
    places: Places | None = None,
    *,
    resume: bool = False,
    say: Callable[[str], None] = say,
) -> Finding:
    """Run the stages of a recipe.

    Args:
        recipe: Recipe to run.
        places: Where its files are; None for where it says.
        resume: Whether to go on with what was killed: stages that are done stay as they are.
        say: Function that is told each command before it runs.

    Raises:
        OmpqError: A stage refuses what it is asked.
    """
    start = time.perf_counter()
    commands = build_commands(recipe, places or Places())
    goes_on = resume
    for command in commands:
        if goes_on and _is_done(command):
            say(f"done before: {command}")
            continue
        if goes_on and command.stage in _RESUMED:
            command = replace(command, words=(*command.words, _RESUME))
        # What comes behind a stage that is run begins anew.
        goes_on = False
        say(f"$ {command}")
        _run_command(command)
    found = _read_figure(commands, recipe.expectation)
    return Finding(recipe, found, (time.perf_counter() - start) / 60)


def _is_done(command: Command) -> bool:
    """Tell whether a stage's folder holds what this very command wrote at its end."""
    file = command.folder / _RESULTS.get(command.stage, "")
    if not file.is_file():
        return False
    try:
        written = shlex.split(json.loads(file.read_text(encoding="utf-8"))["command"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    asked = shlex.split(str(command))
    return [w for w in written if w != _RESUME] == [w for w in asked if w != _RESUME]


def _run_command(command: Command) -> None:
    """Run a stage as if its command line had been typed."""
    with command.typed():
        arguments = command.parse()
        try:
            _RUN[command.stage](arguments)
        except OmpqError as error:
            told = arguments.parser.in_flags(str(error))
            raise OmpqError(f"{TOOLS[command.stage].command}: {told}") from error


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
