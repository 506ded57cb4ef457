"""Options of recipes, spelled as the words of a command line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ompq.errors import OmpqError
from ompq.parser import Parser
from ompq.yaml_files import check_keys

# What options set that `ompq-run` decides, and who decides it instead.
_DECIDED = {
    "output_dir": "results go below the `output_dir` of ompq-run",
    "resume": "ompq-run goes on with `resume`",
    "evaluate": "evaluate what the recipe has written afterwards",
    "multiprocessing_distributed": "a recipe runs in one process",
}


def flag(name: str) -> str:
    """Return the flag of an option.

    >>> flag("path")
    '--path'
    """
    return f"--{name}"


def spell_options(where: str, options: Mapping[str, Any], stage: str, parser: Parser) -> list[str]:
    """Spell options as the words of a stage's command line.

    Args:
        where: Name of the section, for messages.
        options: Option without dashes → its value; of a search also `bits` by layers.
        stage: Name of the stage.
        parser: Parser of its command.

    Raises:
        OmpqError: The command has no such option, it takes no such value, or a recipe cannot say
            it.
    """
    known = {
        word.lstrip("-"): action
        for action in parser._actions
        for word in action.option_strings
        if word.startswith("--") and action.dest != "help"
    }
    check_keys(where, options, list(known))
    words: list[str] = []
    for key, value in options.items():
        if known[key].dest in _DECIDED:
            raise OmpqError(f"{where}: {key} is no recipe's to say; {_DECIDED[known[key].dest]}")
        if stage == "search" and key == "bits" and isinstance(value, dict):
            words += _spell_bits(f"{where}: bits", value)
        else:
            words += _spell(f"{where}: {key}", key, value, known)
    return words


def _spell_bits(where: str, bits: Mapping[Any, object]) -> list[str]:
    """Spell widths by layers: a list holds candidates, one number is kept."""
    words: list[str] = []
    for layer, value in bits.items():
        # YAML reads 1.10 as the number 1.1, which is another layer.
        if isinstance(layer, bool) or not isinstance(layer, str | int):
            raise OmpqError(f"{where}: {layer!r} is no text; write the layer in quotes")
        is_list = isinstance(value, list)
        widths = value if isinstance(value, list) else [value]
        if not widths or any(isinstance(w, bool) or not isinstance(w, int) for w in widths):
            raise OmpqError(
                f"{where}: {layer} is {value!r}; write a width, or a list such as [2, 4]"
            )
        listed = ",".join(map(str, widths))
        if layer == "*":
            words += [flag("bits"), listed]
        else:
            words += [flag("bits" if is_list else "pin"), f"{layer}={listed}"]
    return words


def _spell(where: str, key: str, value: Any, known: Mapping[str, argparse.Action]) -> list[str]:
    action = known[key]
    if isinstance(value, bool):
        return _spell_switch(key, value, known)
    if action.nargs == 0:
        raise OmpqError(f"{where} is {value!r}; write true or false")
    if isinstance(value, list):
        words = [str(each) for each in value]
        if isinstance(action, argparse._AppendAction):
            return [part for word in words for part in (flag(key), word)]
        return (
            [flag(key), *words] if action.nargs not in (None, "?") else [flag(key), ",".join(words)]
        )
    if value is None or isinstance(value, dict):
        raise OmpqError(f"{where} is {value!r}; write one value")
    return [flag(key), str(value)]


def _spell_switch(key: str, value: bool, known: Mapping[str, argparse.Action]) -> list[str]:
    if value:
        return [flag(key)]
    opposite = key.removeprefix("no-") if key.startswith("no-") else f"no-{key}"
    if opposite in known:
        return [flag(opposite)]
    return [] if known[key].nargs == 0 else [flag(key), "false"]
