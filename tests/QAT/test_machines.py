"""Fine-tuning on two machines gives what two processes of one machine give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from machines import run_on_one_machine, run_on_two_machines
from safetensors.torch import load_file
from support import ROOT

EARLIER = ROOT / "tests" / "earlier"
SCRIPT = "QAT/quant_train.py"


@pytest.mark.slow
def test_two_machines_give_what_two_processes_of_one_give(tmp_path: Path) -> None:
    options = [
        "-a", f"{EARLIER / 'tiny.py'}:make", "--path", str(EARLIER / "tiny.pth"), "--dataset",
        "digits", "--data_percentage", "0.2", "--epochs", "1", "--batch_size", "48", "--lr",
        "0.01", "--quant_scheme", "uniform4", "--workers", "0", "--save_path",
    ]  # fmt: skip
    run_on_one_machine(SCRIPT, [*options, "one"], tmp_path)
    first, second = run_on_two_machines(SCRIPT, [*options, "two"], tmp_path)
    assert "top-1" in first and not second.strip()
    one, two = (load_file(tmp_path / n / "quantized.safetensors") for n in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(two[name], value), name
    found = [json.loads((tmp_path / n / "results.json").read_text()) for n in ("one", "two")]
    for key in ("top1", "top1_before", "history", "num_eval", "steps"):
        assert found[0][key] == found[1][key]
    changes = [json.loads((tmp_path / n / "changes.json").read_text()) for n in ("one", "two")]
    assert changes[0] == changes[1]
    assert changes[0]["num_images"] == found[0]["num_eval"]
