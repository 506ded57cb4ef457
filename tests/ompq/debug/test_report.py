"""The table shows the worst first; the file holds all."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ompq.debug.comparison import LayerComparison
from ompq.debug.report import print_table, sort_worst_first, write


def layer(name: str, own: float | None) -> LayerComparison:
    return LayerComparison(
        name, 4, 8, 20.0, math.inf, own, own, own, own, clipped=0.125, dead_channels=2, hint="help"
    )


LAYERS = [layer("stem", 30.0), layer("body", 12.5), layer("unseen", None), layer("head", math.inf)]


def test_the_table_begins_with_the_worst(capsys: pytest.CaptureFixture[str]) -> None:
    assert [found.name for found in sort_worst_first(LAYERS)][:2] == ["body", "stem"]
    print_table(LAYERS, shown=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:5] == ["body", "4", "8", "20.0", "inf"]
    assert "12.50" in lines[2] and lines[2].endswith("help")
    assert "and 2 layers with less noise" in lines[4]


def test_the_file_holds_what_json_can(tmp_path: Path) -> None:
    assert write(LAYERS, {"num_images": 3}, tmp_path) == ["debug.json", "debug.png"]
    content = json.loads((tmp_path / "debug.json").read_text())
    assert content["format"] == "ompq-debug/1" and content["num_images"] == 3
    assert [found["name"] for found in content["layers"]] == [found.name for found in LAYERS]
    assert content["layers"][3]["own"] is None and content["layers"][1]["own"] == 12.5
    assert (tmp_path / "debug.png").stat().st_size > 1000
