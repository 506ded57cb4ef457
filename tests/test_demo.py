"""The demonstration on its embedded default, shortened."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import ROOT, run_command


@pytest.mark.slow
def test_the_demonstration_prints_its_table_and_keeps_its_network(script, tmp_path: Path) -> None:
    first = script("examples/demo.py", "--epochs", 3, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert lines[0].startswith("training small_resnet on digits")
    assert lines[1].startswith("float accuracy:")
    rows = {line[:34].strip(): line[34:].split() for line in lines if line[34:].count(".") == 3}
    assert float(rows["float"][2]) > 80
    assert float(rows["uniform 8"][2]) > 80
    assert (tmp_path / "demo_output" / "digits.png").is_file()
    controls = [float(rows[f"uniform {w} (stem, classifier 8)"][0]) for w in (2, 3, 4)]
    assert controls == sorted(controls)
    start = next(i for i, line in enumerate(lines) if line.startswith("reconstructed on"))
    learned = {line[:26].strip(): line[26:].split() for line in lines[start + 2 : start + 5]}
    assert set(learned) == {"uniform 2", "uniform 3", "OMPQ, size of uniform 3"}
    rounded, weights, everything, _ = map(float, learned["uniform 2"])
    assert weights > rounded and everything > rounded
    again = script("examples/demo.py", "--epochs", 3, cwd=tmp_path)
    assert "(of an earlier run)" in again.stdout
    seconds = re.compile(r" +[\d.]+$")
    repeated = [seconds.sub("", line) for line in again.stdout.splitlines()[1:]]
    assert repeated == [seconds.sub("", line) for line in lines[1:]]


def test_make_tells_what_there_is_to_make() -> None:
    run = run_command(["make", "help"], ROOT)
    assert run.returncode == 0
    assert {"demo", "test", "lint"} <= {line.split()[0] for line in run.stdout.splitlines() if line}
