"""The argument parser of every script: errors in one line, fields as flags, paths of users."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from ompq.errors import OmpqError

# Fields of the library whose options are called otherwise, in all scripts.
_FIELDS = {
    "backend": "loader",
    "network": "model",
    "root": "data",
}


# What the installed commands are called, whose names errors and help use.
_COMMANDS = "ompq-"


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help formatter that tells the defaults that tell something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        says_nothing = default is None or default is False or default == []
        if says_nothing or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises its errors as one line, and knows the flags of fields.

    The library's messages name a field in backticks, as Python code knows it; `in_flags` puts the
    script's flag in its place. The parsed arguments hold the parser as `parser`.

    Args:
        fields: Name of a field in the library → destination of the option that sets it, where the
            two differ; several destinations where several options set it, of which the typed one
            is named.
        settings: Keyword arguments of `argparse.ArgumentParser`.
    """

    def __init__(
        self, *, fields: Mapping[str, str | tuple[str, ...]] | None = None, **settings: Any
    ) -> None:
        settings.setdefault("formatter_class", _Help)
        command = Path(sys.argv[0]).name
        if command.startswith(_COMMANDS):
            settings["prog"] = command
        super().__init__(allow_abbrev=False, **settings)
        self._fields = {**_FIELDS, **(fields or {})}
        self.set_defaults(parser=self)
        # Shells leave the ~ of `--path=~/file` to the program.
        self.register("type", Path, _read_path)

    @property
    def command(self) -> str:
        """Return the command line that started this process, to be run again."""
        return shlex.join([self.prog, *sys.argv[1:]])

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the whole usage."""
        unknown = message.startswith("unrecognized arguments: ")
        advice = self._suggest(message.split()[2:]) if unknown else ""
        message = re.sub(r"invalid int value: (.+)", r"\1 is not a whole number", message)
        message = re.sub(r"invalid float value: (.+)", r"\1 is not a number", message)
        helping = self._actions[0].option_strings[-1]
        raise OmpqError(f"{message}; {advice}see {self.prog} {helping}")

    def _suggest(self, words: Sequence[str]) -> str:
        """Suggest the options that unknown ones may stand for; empty where none is near."""
        flags = {flag.replace("-", "_"): flag for a in self._actions for flag in a.option_strings}
        typed = [word.partition("=")[0].replace("-", "_") for word in words if word[:1] == "-"]
        near = [name for word in typed for name in get_close_matches(word, flags, n=1, cutoff=0.7)]
        found = dict.fromkeys(flags[name] for name in near)
        return f"did you mean {' '.join(found)}? " if found else ""

    def in_flags(self, text: str) -> str:
        """Return a message of the library with this script's flags in the place of fields.

        Of an option's flags it is the one that the user typed, else the first long form. A field
        that no option of the script sets stays as it is.
        """
        flags = {action.dest: action.option_strings for action in self._actions}
        typed = {word.partition("=")[0] for word in sys.argv[1:]}

        def flag(match: re.Match[str]) -> str:
            names = self._fields.get(match[1], match[1])
            names = (names,) if isinstance(names, str) else names
            found = [option for name in names for option in flags.get(name, ())]
            return _choose_flag(found, typed) if found else match[0]

        return re.sub(r"`(\w+)`", flag, text)

    def print_note(self, note: str) -> None:
        """Print one message of the library, as `print_notes` does."""
        self.print_notes([note])

    def print_notes(self, notes: Iterable[str]) -> None:
        """Print messages of the library, one line each, with this script's flags in them."""
        for note in notes:
            print(f"note: {self.in_flags(note)}", flush=True)


def _read_path(text: str) -> Path:
    """Parse a path, `~` and `~name` being home folders.

    >>> _read_path("a/~b")
    PosixPath('a/~b')
    """
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    try:
        return Path(text).expanduser() if text.startswith("~") else Path(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text}: there is no such home folder") from error


def read_text(text: str) -> str:
    """Parse a path or another text, `~` and `~name` being home folders where it begins so.

    >>> read_text("[4, 3]")
    '[4, 3]'
    """
    return str(_read_path(text)) if text.startswith("~") else text


def _choose_flag(flags: Sequence[str], typed: Collection[str]) -> str:
    """Return the flag of an option that was typed, else its first long form."""
    chosen = [flag for flag in flags if flag in typed]
    return next(flag for flag in [*chosen, *flags] if chosen or flag.startswith("--"))
