"""The command lines that a recipe stands for."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixed_bit.options import build_search_parser
from ompq.errors import OmpqError
from ompq.export.options import build_parser as build_export_parser
from ompq.options import DEFAULT_DATASET, Parser
from PTQ.options import build_parser as build_ptq_parser
from QAT.options import build_parser as build_qat_parser
from recipes.recipe import Recipe
from recipes.spelling import flag, spell_options

FOLDER = Path("recipe_output")
BITS = "bit_config.json"
# Options that tell the widths of a stage, which a search finds otherwise.
_WIDTHS = ("bit_cfg", "quant_scheme", "n_bits_w")
# Options of the network that text may name in braces.
_NAMED: tuple[str, ...] = ("arch", "path")
# Options that name a network or its weights, in any section.
_NETWORKS = ("arch", "teacher_arch")
_WEIGHTS = ("path", "teacher_path")


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

    def parse(self) -> argparse.Namespace:
        """Return the arguments, as the command would get them.

        Raises:
            OmpqError: An option has a value that it cannot have.
        """
        with self.typed():
            return TOOLS[self.stage].build_parser().parse_args(list(self.words))

    @contextmanager
    def typed(self) -> Iterator[None]:
        """Let the process seem to be started by this command, which files of results tell."""
        before = sys.argv
        sys.argv = [TOOLS[self.stage].command, *self.words]
        try:
            yield
        finally:
            sys.argv = before


@dataclass(frozen=True)
class Places:
    """Where the files of a recipe are on this machine.

    Attributes:
        path: Weights of the network; None for those that the recipe names.
        weights: Folder that holds the weights which recipes name; None for the present one.
        data: Folder of the data set; None for that of the recipe, or the data set's own place.
        output: Folder for the results, one folder in it for each recipe.
        data_of: Data set → its folder, where it is not `data`.
    """

    path: Path | None = None
    weights: Path | None = None
    data: Path | None = None
    output: Path = FOLDER
    data_of: Mapping[str, Path] = field(default_factory=dict)


def build_commands(recipe: Recipe, places: Places) -> list[Command]:
    """Build the command lines of a recipe's stages, in order.

    Args:
        recipe: Recipe to run.
        places: Where its files are.

    Raises:
        OmpqError: An option is none of its stage, or has a value that it cannot have.
    """
    where = f"recipe {recipe.file}"
    network = _locate_network(recipe, places)
    data = dict(recipe.data)
    folder = places.data_of.get(data.get("dataset", DEFAULT_DATASET), places.data)
    if folder is not None:
        data["data"] = str(folder)
    folders = {stage: places.output / recipe.name / stage for stage in recipe.stages}
    names = {name: str(network[name]) for name in _NAMED if network.get(name) is not None}
    commands = []
    for stage, section in recipe.stages.items():
        told = f"{where}: {stage}"
        options = _locate(section, recipe, places)
        options = {key: _fill_in(f"{told}: {key}", v, names) for key, v in options.items()}
        parser = TOOLS[stage].build_parser()
        words = [] if stage != "export" else [str(_find_exported(told, folders))]
        if stage != "export":
            words += spell_options(f"{where}: network", network, stage, parser)
            words += spell_options(f"{where}: data", data, stage, parser)
        words += _link(stage, options, folders)
        words += spell_options(told, options, stage, parser)
        words += [flag("output_dir"), str(folders[stage])]
        command = Command(stage, tuple(words), folders[stage])
        try:
            command.parse()
        except OmpqError as error:
            raise OmpqError(f"{told}: {error}") from error
        commands.append(command)
    return commands


def find_dataset(recipe: Recipe, commands: Sequence[Command]) -> str:
    """Find the data set of a recipe, which may leave it to its commands.

    Args:
        recipe: Recipe.
        commands: Its command lines.
    """
    told = [c.parse().dataset for c in commands if c.stage != "export"]
    return str(told[-1] if told else recipe.data.get("dataset"))


def _locate_network(recipe: Recipe, places: Places) -> dict[str, Any]:
    """Return the options of the network with its files where they are."""
    network = {"arch" if key == "model" else key: v for key, v in recipe.network.items()}
    if places.path is None:
        return _locate(network, recipe, places)
    network.pop("pretrained", None)
    return {**_locate(network, recipe, places), "path": str(places.path)}


def _locate(options: Mapping[str, Any], recipe: Recipe, places: Places) -> dict[str, Any]:
    """Return options with networks' files beside the recipe, and weights in their folder."""
    located = dict(options)
    for key, value in options.items():
        if not isinstance(value, str) or value.startswith(("~", "{")):
            continue
        if key in _NETWORKS and ".py:" in value:
            located[key] = str(recipe.file.parent / value)
        elif key in _WEIGHTS and places.weights is not None:
            located[key] = str(places.weights / value)
    return located


def _fill_in(where: str, value: object, names: Mapping[str, str]) -> object:
    if not isinstance(value, str):
        return value
    for name, told in names.items():
        value = value.replace(f"{{{name}}}", told)
    left = re.search(rf"{{({'|'.join(_NAMED)})}}", value)
    if left is not None:
        raise OmpqError(f"{where} names {left[0]}; give network a {left[1]}")
    return value


def _link(stage: str, options: Mapping[str, Any], folders: Mapping[str, Path]) -> list[str]:
    """Let a stage take what an earlier one found: the network to start from, or the widths."""
    if stage == "qat" and "ptq" in folders:
        return [] if "init_from" in options else [flag("init_from"), str(folders["ptq"])]
    given = any(key in options for key in _WIDTHS)
    if stage in ("ptq", "qat") and "search" in folders and not given:
        return [flag("bit_cfg"), str(folders["search"] / BITS)]
    return []


def _find_exported(where: str, folders: Mapping[str, Path]) -> Path:
    for stage in ("qat", "ptq"):
        if stage in folders:
            return folders[stage]
    raise OmpqError(f"{where} has nothing to export; give the recipe a stage ptq or qat")
