"""The demonstration on its embedded default, shortened."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from support import ROOT, run_command

from examples import demo
from ompq import trace


@pytest.mark.slow
def test_the_demonstration_fits_one_screen_and_keeps_its_network(
    script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    packed = r"exported: model\.ompq\.safetensors: \d+ bytes, 1\.\d+ × promised; 0 of 3590"
    assert re.search(packed, first.stdout)
    exact = r"model\.integer\.onnx: .*; 0 of 3590 logits differ in ONNX Runtime"
    assert re.search(exact, first.stdout) or "pip install onnx" in first.stdout
    for name in ("digits.png", "digits-compared.png", "ptq.safetensors", "qat.safetensors"):
        assert (tmp_path / "demo_output" / name).is_file()
        assert f"demo_output/{name}" in first.stdout
    # The long tables and the kept network, without the rest of a second run.
    folder = tmp_path / "demo_output"
    arguments = demo.build_parser().parse_args(["--epochs", "3", "--output_dir", str(folder)])
    network = demo.train_or_load(arguments, torch.device("cpu"))
    images = torch.randn(8, 3, 8, 8)
    demo.print_rounded(arguments, network, trace(network.module, (3, 8, 8)), images)
    told = capsys.readouterr().out
    assert "(of an earlier run)" in told
    assert told.count("orthogonality, β = 10") == told.count("projection") == 3


def test_make_tells_what_there_is_to_make() -> None:
    run = run_command(["make", "help"], ROOT)
    assert run.returncode == 0
    assert {"demo", "test", "lint"} <= {line.split()[0] for line in run.stdout.splitlines() if line}
