"""The command lines that a recipe stands for."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixed_bit.options import build_search_parser
from ompq.errors import OmpqError
from ompq.export.options import build_parser as build_export_parser
from ompq.options import Parser
from ompq.yaml_files import check_keys
from PTQ.options import build_parser as build_ptq_parser
from QAT.options import build_parser as build_qat_parser
from recipes.recipe import Recipe

FOLDER = Path("recipe_output")
BITS = "bit_config.json"
# Options that tell the widths of a stage, which a search finds otherwise.
_WIDTHS = ("bit_cfg", "quant_scheme", "n_bits_w")
# Options of the network that text may name in braces.
_NAMED: tuple[str, ...] = ("arch", "path")


@dataclass(frozen=True)
class Tool:
    """A command of the toolkit, as a stage of recipes.

    Attributes:
        command: What it is called.
        build_parser: Function that gives its parser.
    """

    command: str
    build_parser: Callable[[], Parser]


TOOLS = {
    "search": Tool("ompq-bits", build_search_parser),
    "ptq": Tool("ompq-ptq", build_ptq_parser),
    "qat": Tool("ompq-qat", build_qat_parser),
    "export": Tool("ompq-export", build_export_parser),
}


@dataclass(frozen=True)
class Command:
    """The command line of one stage.

    Attributes:
        stage: Name of the stage.
        words: Arguments of its command.
        folder: Folder that it writes into.
    """

    stage: str
    words: tuple[str, ...]
    folder: Path

    def __str__(self) -> str:
        return shlex.join([TOOLS[self.stage].command, *self.words])


@dataclass(frozen=True)
class Places:
    """Where the files of a recipe are on this machine.

    Attributes:
        path: Weights of the network; None for those that the recipe names.
        weights: Folder that holds the weights which recipes name; None for the present one.
        data: Folder of the data set; None for that of the recipe, or the data set's own place.
        output: Folder for the results, one folder in it for each recipe.
    """

    path: Path | None = None
    weights: Path | None = None
    data: Path | None = None
    output: Path = FOLDER


def build_commands(recipe: Recipe, places: Places) -> list[Command]:
    """Build the command lines of a recipe's stages, in order.

    Args:
        recipe: Recipe to run.
        places: Where its files are.

    Raises:
        OmpqError: An option is none of its stage, or has a value that it cannot have.
    """
    network = _locate_network(recipe, places)
    data = dict(recipe.data)
    if places.data is not None:
        data["data"] = str(places.data)
    folders = {stage: places.output / recipe.name / stage for stage in recipe.stages}
    names = {name: str(network[name]) for name in _NAMED if name in network}
    commands = []
    for stage, section in recipe.stages.items():
        options = {key: _fill_in(value, names) for key, value in section.items()}
        common = {} if stage == "export" else {**network, **data}
        where = f"recipe {recipe.file}: {stage}"
        if stage == "export":
            first = [str(_find_exported(where, folders))]
        else:
            first = []
            options = _link(stage, options, folders)
        words = first + spell_options(where, {**common, **options}, stage)
        words += [_flag("output_dir"), str(folders[stage])]
        commands.append(Command(stage, tuple(words), folders[stage]))
    return commands


def _locate_network(recipe: Recipe, places: Places) -> dict[str, Any]:
    """Return the options of the network with its files where they are."""
    network = dict(recipe.network)
    arch = str(network.get("arch", ""))
    if ".py:" in arch:
        network["arch"] = str(recipe.file.parent / arch)
    if places.path is not None:
        network["path"] = str(places.path)
    elif places.weights is not None and "path" in network:
        network["path"] = str(places.weights / str(network["path"]))
    return network


def _fill_in(value: object, names: Mapping[str, str]) -> object:
    if not isinstance(value, str):
        return value
    for name, told in names.items():
        value = value.replace(f"{{{name}}}", told)
    return value


def _link(stage: str, options: dict[str, Any], folders: Mapping[str, Path]) -> dict[str, Any]:
    """Let a stage take what an earlier one found: the widths, or the network to start from."""
    if stage == "search" or any(key in options for key in _WIDTHS):
        return options
    if stage == "qat" and "ptq" in folders:
        return {"init_from": str(folders["ptq"]), **options}
    if "search" in folders:
        return {"bit_cfg": str(folders["search"] / BITS), **options}
    return options


def _find_exported(where: str, folders: Mapping[str, Path]) -> Path:
    for stage in ("qat", "ptq"):
        if stage in folders:
            return folders[stage]
    raise OmpqError(f"{where} has nothing to export; give the recipe a stage ptq or qat")


def spell_options(where: str, options: Mapping[str, Any], stage: str) -> list[str]:
    """Spell options as the words of a stage's command line.

    Args:
        where: Name of the section, for messages.
        options: Option without dashes → its value; of a search also `bits` by layers.
        stage: Key of `TOOLS`.

    Raises:
        OmpqError: The command has no such option, or it takes no such value.
    """
    parser = TOOLS[stage].build_parser()
    known = {
        flag.lstrip("-"): action
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--") and action.dest != "help"
    }
    check_keys(where, options, list(known))
    words: list[str] = []
    for key, value in options.items():
        if stage == "search" and key == "bits" and isinstance(value, dict):
            words += _spell_bits(f"{where}: bits", value)
        else:
            words += _spell(f"{where}: {key}", key, value, known)
    return words


def _flag(name: str) -> str:
    return f"--{name}"


def _spell_bits(where: str, bits: Mapping[Any, object]) -> list[str]:
    """Spell widths by layers: a list holds candidates, one number is kept."""
    words: list[str] = []
    for layer, value in bits.items():
        is_list = isinstance(value, list)
        widths = value if isinstance(value, list) else [value]
        if not widths or any(isinstance(w, bool) or not isinstance(w, int) for w in widths):
            raise OmpqError(
                f"{where}: {layer} is {value!r}; write a width, or a list such as [2, 4]"
            )
        listed = ",".join(map(str, widths))
        if layer == "*":
            words += [_flag("bits"), listed]
        else:
            words += [_flag("bits" if is_list else "pin"), f"{layer}={listed}"]
    return words


def _spell(where: str, key: str, value: Any, known: Mapping[str, argparse.Action]) -> list[str]:
    flag, action = _flag(key), known[key]
    if isinstance(value, bool):
        if value:
            return [flag]
        if f"no-{key}" in known:
            return [_flag(f"no-{key}")]
        return [] if action.nargs == 0 else [flag, "false"]
    if action.nargs == 0:
        raise OmpqError(f"{where} is {value!r}; write true or false")
    if isinstance(value, list):
        words = [str(each) for each in value]
        return [flag, *words] if action.nargs not in (None, "?") else [flag, ",".join(words)]
    if value is None or isinstance(value, dict):
        raise OmpqError(f"{where} is {value!r}; write one value")
    return [flag, str(value)]
