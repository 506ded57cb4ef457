"""The demonstration on its embedded default, shortened."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import ROOT, run_command

SECONDS = re.compile(r", +\d+ s\b|; [\d.]+ s$|[\d.]+ s\b")


@pytest.mark.slow
def test_the_demonstration_fits_one_screen_and_keeps_its_network(script, tmp_path: Path) -> None:
    first = script("examples/demo.py", "--epochs", 3, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 130
    assert lines[0].startswith("training small_resnet on digits")
    assert lines[1].startswith("float: top-1")
    head = next(i for i, line in enumerate(lines) if line.startswith("bits allocated by"))
    rows = [line.rsplit(maxsplit=3) for line in lines[head + 1 : lines.index("", head)]]
    names = " ".join(row[0] for row in rows)
    assert all(name in names for name in ("kl", "fisher", "projection", "uniform", "random"))
    divergences = [float(row[2]) for row in rows]
    assert divergences == sorted(divergences)
    steps = [float(found) for found in re.findall(r"^  .* top-1 +([\d.]+) %", first.stdout, re.M)]
    rounded, reconstructed, tuned, integers = steps
    assert reconstructed > rounded
    assert tuned == integers > rounded
    assert "on 359 of them every logit is equal to the bit" in first.stdout
    for name in ("digits.png", "digits-compared.png", "ptq.safetensors", "qat.safetensors"):
        assert (tmp_path / "demo_output" / name).is_file()
        assert f"demo_output/{name}" in first.stdout
    again = script("examples/demo.py", "--epochs", 3, "--verbose", cwd=tmp_path)
    assert "(of an earlier run)" in again.stdout
    told = [SECONDS.sub("", line) for line in again.stdout.splitlines()]
    assert all(SECONDS.sub("", line) in told for line in lines[1:-1])
    assert "orthogonality, β = 10" in again.stdout
    assert "rank correlation" in again.stdout


def test_make_tells_what_there_is_to_make() -> None:
    run = run_command(["make", "help"], ROOT)
    assert run.returncode == 0
    assert {"demo", "test", "lint"} <= {line.split()[0] for line in run.stdout.splitlines() if line}
