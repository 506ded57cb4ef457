"""The features of a search measured on two machines are those of two processes of one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from machines import run_on_one_machine, run_on_two_machines
from support import ROOT

EARLIER = ROOT / "tests" / "earlier"
SCRIPT = "mixed_bit/feature_extract.py"


@pytest.mark.slow
def test_two_machines_give_what_two_processes_of_one_give(tmp_path: Path) -> None:
    options = [
        "--model", f"{EARLIER / 'tiny.py'}:make", "--path", str(EARLIER / "tiny.pth"),
        "--dataset", "digits", "--quant_type", "PTQ", "--model_size", "0.0007", "--num_images",
        "32", "--workers", "0", "--output_dir",
    ]  # fmt: skip
    run_on_one_machine(SCRIPT, [*options, "one"], tmp_path)
    first, second = run_on_two_machines(SCRIPT, [*options, "two"], tmp_path)
    assert "Bit configuration (PTQ): [" in first and not second.strip()
    matrices = [np.load(tmp_path / name / "orthogonality.npy") for name in ("one", "two")]
    np.testing.assert_array_equal(*matrices)
    configs = [json.loads((tmp_path / n / "bit_config.json").read_text()) for n in ("one", "two")]
    for config in configs:
        del config["timing"], config["command"]
    assert configs[0] == configs[1]
