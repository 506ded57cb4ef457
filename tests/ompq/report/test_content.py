"""Files that are damaged: named with the place, or shown without what is not known."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reported import CONFIG, FILES, FRONT, HISTORY, RESULTS, fill

from ompq.errors import OmpqError
from ompq.report.page import build_page, write_report
from ompq.report.reading import read_folder

QAT = {key: value for key, value in RESULTS.items() if key not in ("blocks", "tuning")}
QAT |= {"format": "ompq-qat-results/1", "history": HISTORY}


def _find_places(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Find the places of everything in JSON, of lists in their first entry."""
    if place:
        yield place
    held = content.items() if isinstance(content, dict) else []
    if isinstance(content, list):
        held = list(enumerate(content))[:1]
    for key, value in held:
        yield from _find_places(value, (*place, key))


def _change(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(content)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


@pytest.mark.parametrize("value", [None, math.nan, -1, "text", [], {}], ids=str)
@pytest.mark.parametrize("name", [*FILES, "fine-tuning"])
def test_damage_is_shown_as_unknown_or_named(name: str, value: Any, tmp_path: Path) -> None:
    content = QAT if name == "fine-tuning" else FILES[name]
    name = "results.json" if name == "fine-tuning" else name
    file = tmp_path / name
    if name == "changes.json":
        fill(tmp_path, "results.json")
    for place in _find_places(content):
        file.write_text(json.dumps(_change(content, place, value)))
        try:
            page = build_page([read_folder(tmp_path)])
        except OmpqError as error:
            assert str(file) in str(error)
        else:
            assert '="nan"' not in page and ">None<" not in page


def test_the_place_of_a_damage_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "results.json")
    damaged = _change(RESULTS, ("allocation", 1, "bits"), "four")
    (tmp_path / "results.json").write_text(json.dumps(damaged))
    with pytest.raises(OmpqError, match=r"allocation\.1\.bits is 'four', not a width"):
        write_report([tmp_path])


@pytest.mark.parametrize(
    "matrix", [np.zeros((0, 0)), np.array([["a"]]), np.array([[np.nan]]), np.zeros((2, 3))]
)
def test_matrices_of_something_else_are_refused(matrix: np.ndarray, tmp_path: Path) -> None:
    fill(tmp_path, "compare.json")
    np.save(tmp_path / "orthogonality.npy", matrix)
    with pytest.raises(OmpqError, match="holds no square matrix of numbers"):
        write_report([tmp_path])


def test_what_an_earlier_search_left_is_not_shown(tmp_path: Path) -> None:
    np.save(fill(tmp_path, "bit_config.json", "sweep.json") / "orthogonality.npy", np.eye(2))
    knee = next(point["bits"] for point in FRONT["points"] if point["knee"])
    own = CONFIG | {"bits": knee}
    (tmp_path / "bit_config.json").write_text(json.dumps(own))
    found = read_folder(tmp_path)
    assert found.front is not None and found.orthogonality is not None
    (tmp_path / "bit_config.json").write_text(
        json.dumps({**CONFIG, "bits": [8, 8], "estimator": None})
    )
    found = read_folder(tmp_path)
    assert found.front is None and found.orthogonality is None


@pytest.mark.parametrize("given", ["search", "search/mine.json"])
def test_a_search_is_found_by_its_folder_and_by_any_name(given: str, tmp_path: Path) -> None:
    searched = fill(tmp_path / "search", "bit_config.json")
    (searched / "mine.json").write_text((searched / "bit_config.json").read_text())
    # The folder's own is of another search.
    folder = fill(tmp_path / "run", "results.json", "bit_config.json")
    (folder / "bit_config.json").write_text(json.dumps(CONFIG | {"groups": []}))
    arguments = {"model": "net.py:make", "bit_cfg": str(tmp_path / given)}
    (folder / "results.json").write_text(json.dumps(RESULTS | {"arguments": arguments}))
    assert read_folder(folder).groups[2].sensitivities[2] == 0.75
