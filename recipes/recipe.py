"""What a recipe says: network, images, what is done in which stage, and the figure to expect.

A recipe is a YAML file:

    title: ResNet-20 on CIFAR-10 at 70 KB
    network: {arch: networks/cifar_resnet.py:resnet20, path: cifar10_resnet20.th}
    data: {dataset: cifar10, input_size: 32}
    search:
      quant_type: PTQ
      model_size: 0.0684
      bits: {"*": [2, 3, 4], "layer3.*": [2, 4], conv1: 8}
    ptq: {act_quant: true, n_bits_a: 8}
    export: {to: packed}
    expect: {top1: 91.0, standard_error: 0.29, source: measured}
    minutes: 10

The keys of a stage are the options of its command without the dashes. `bits` names layers by globs:
a list holds candidates, one number is kept. Text may name `{arch}` and `{path}`, for a teacher.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ompq.errors import OmpqError
from ompq.yaml_files import check_keys, read_yaml

STAGES = ("search", "ptq", "qat", "export")
# Figures of `results.json` that a recipe may expect, and what they are called.
FIGURES = {"top1": "top-1", "agreement": "agreement with the float network"}
SOURCES = ("measured", "paper")
_KEYS = ("title", "network", "data", *STAGES, "expect", "minutes")
_NEEDED = ("title", "network", "data")


@dataclass(frozen=True)
class Expectation:
    """A figure that a recipe promises.

    Attributes:
        figure: Which one, a key of `FIGURES`.
        value: Its value, per cent.
        standard_error: Its standard error, points.
        from_paper: Whether it is the paper's, and was not measured with this toolkit.
    """

    figure: str
    value: float
    standard_error: float
    from_paper: bool = False

    @property
    def least(self) -> float:
        """Return the least value that counts as met: two standard errors below."""
        return self.value - 2 * self.standard_error

    def is_met_by(self, found: float) -> bool:
        """Tell whether a value is not more than two standard errors below the figure.

        >>> Expectation("top1", 91.0, 0.3).is_met_by(90.4)
        True
        """
        return found >= self.least

    def describe(self) -> str:
        """Say what is expected."""
        source = "the paper's, not run with this toolkit" if self.from_paper else "measured"
        return f"{FIGURES[self.figure]} {self.value:.2f} ± {self.standard_error:.2f} % ({source})"


@dataclass(frozen=True)
class Recipe:
    """A recipe as its file has it.

    Attributes:
        file: The YAML file.
        title: What it is, in a line.
        network: Options of the network, common to all stages.
        data: Options of the data set and of how its images are read, common to all stages.
        stages: Stage → its options, in the order in which they run.
        expectation: The figure to expect; None where none is known.
        minutes: How long it took; None where nobody ran it.
    """

    file: Path
    title: str
    network: Mapping[str, Any]
    data: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]
    expectation: Expectation | None = None
    minutes: float | None = None

    @property
    def name(self) -> str:
        """Return the name of the file without its ending."""
        return self.file.stem


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Args:
        path: Path of its YAML file.

    Raises:
        OmpqError: The file is missing or no YAML, lacks a key, or has one that no recipe has.
    """
    where = f"recipe {path}"
    content = read_yaml(path, where, "recipe")
    if not isinstance(content, dict):
        raise OmpqError(f"{where} is not a recipe; give it {', '.join(_KEYS)}")
    check_keys(where, content, _KEYS)
    for key in _NEEDED:
        if key not in content:
            raise OmpqError(f"{where} has no `{key}`; give it one")
    sections = ("network", "data", *(stage for stage in STAGES if stage in content))
    read = {name: _read_section(f"{where}: {name}", content[name]) for name in sections}
    stages = {name: read[name] for name in STAGES if name in read}
    if not stages:
        raise OmpqError(f"{where} has no stage; give it {', '.join(STAGES[:-1])} or several")
    expectation = None
    if "expect" in content:
        expectation = _read_expectation(f"{where}: expect", content["expect"])
        if not {"ptq", "qat"} & stages.keys():
            raise OmpqError(f"{where}: expect needs a stage that measures it, ptq or qat")
    minutes = content.get("minutes")
    return Recipe(
        file=Path(path),
        title=str(content["title"]),
        network=read["network"],
        data=read["data"],
        stages=stages,
        expectation=expectation,
        minutes=None if minutes is None else _read_number(f"{where}: minutes", minutes),
    )


def _read_section(where: str, content: object) -> Mapping[str, Any]:
    """Return the options of a section; an empty one has none."""
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise OmpqError(f"{where} is {content!r}; write options and their values")
    return {str(key): value for key, value in content.items()}


def _read_expectation(where: str, content: object) -> Expectation:
    given = _read_section(where, content)
    check_keys(where, given, (*FIGURES, "standard_error", "source"))
    named = [figure for figure in FIGURES if figure in given]
    if len(named) != 1:
        raise OmpqError(f"{where}: give one figure, {' or '.join(FIGURES)}")
    source = given.get("source", SOURCES[0])
    if source not in SOURCES:
        raise OmpqError(f"{where}: source is {source!r}; it is {' or '.join(SOURCES)}")
    value = _read_number(f"{where}: {named[0]}", given[named[0]])
    if "standard_error" not in given:
        raise OmpqError(f"{where}: there is no standard_error; give it, in points")
    error = _read_number(f"{where}: standard_error", given["standard_error"])
    return Expectation(named[0], value, error, source == "paper")


def _read_number(where: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and 0 <= value <= sys.float_info.max:
        return float(value)
    raise OmpqError(f"{where} is {value!r}; write a number that is not negative")
