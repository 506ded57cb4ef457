"""Figures of any number of groups: axes with sense, names that fit, a page that stays small."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from reported import CHANGES, CONFIG, GROUPS, RESULTS, fill

from ompq.report import write_report
from ompq.report.figures import Bar, Curve, draw_bars, draw_curves, draw_matrix


def _read_labels(drawn: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", drawn)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_between_two_layers_there_is_no_tick(count: int) -> None:
    points = [(index, float(index), "") for index in range(count)]
    labels = _read_labels(draw_curves([Curve("a", points)], "layer", ""))
    places = labels[labels.index("0", 1) if count > 1 else -2 :]
    assert not [label for label in places if label.startswith("0.") or label.startswith("-")]
    sizes = [(0.5 + index, float(index), "") for index in range(2)]
    assert "1.5" in _read_labels(draw_curves([Curve("a", sizes)], "size", ""))


def test_a_plot_without_names_leaves_no_room_for_them() -> None:
    heights = []
    for count in (5, 300):
        drawn = draw_bars([Bar(f"layer{i}", 4, 10, True, "") for i in range(count)])
        heights.append(float(re.findall(r'height="(\d+)" role', drawn)[0]))
    assert heights[1] < heights[0] - 50


def test_pages_of_hundreds_of_groups_stay_small(tmp_path: Path) -> None:
    groups = [{**GROUPS[1], "layers": [f"layer{index}"]} for index in range(300)]
    (tmp_path / "bit_config.json").write_text(json.dumps(CONFIG | {"groups": groups}))
    np.save(tmp_path / "orthogonality.npy", np.random.default_rng(0).random((300, 300)))
    assert write_report([tmp_path]).stat().st_size < 1e6


def test_a_matrix_tells_its_values_and_its_colours_rise() -> None:
    drawn = draw_matrix(np.array([[1.0, 0.25], [0.2504, 1.0]]), ["a", "b"])
    assert '"values":[[1000,250],[250,1000]]' in drawn


def test_long_names_of_classes_are_shortened(tmp_path: Path) -> None:
    fill(tmp_path, "results.json")
    names = ["tench, Tinca tinca, and many further synonyms of the same", "goldfish"]
    (tmp_path / "changes.json").write_text(json.dumps(CHANGES | {"class_names": names}))
    page = write_report([tmp_path]).read_text(encoding="utf-8")
    assert "goldfish → tench, Tinca tinca, and many further sy…<" in page


def test_sizes_of_something_else_are_not_drawn(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(RESULTS | {"model_size_mb": 1e-9}))
    assert "bits everywhere" not in write_report([tmp_path]).read_text(encoding="utf-8")
