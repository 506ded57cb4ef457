"""Fine-tuning for a device: what is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import ROOT

from ompq.errors import OmpqError
from ompq.runtime import Ranks
from QAT.options import build_parser, read_requested_target, read_settings
from QAT.preparation import prepare_run

NPU = str(ROOT / "examples" / "targets" / "npu.yaml")


def test_options_that_contradict_the_device(tmp_path: Path) -> None:
    (tmp_path / "layer.yaml").write_text("per_channel: false\nactivation_bits: [8]\n")
    line = ["--arch", "small_resnet", "--target", str(tmp_path / "layer.yaml")]
    with pytest.raises(OmpqError, match=r"`per_channel`: target .* turn it off"):
        read_requested_target(build_parser().parse_args(line))
    line += ["--channel_wise", "false"]
    assert read_requested_target(build_parser().parse_args(line)) is not None
    with pytest.raises(OmpqError, match="`act_bits` 4: target"):
        read_requested_target(build_parser().parse_args([*line, "--act_bits", "4"]))
    assert read_requested_target(build_parser().parse_args(line[:2])) is None


def test_a_scheme_that_the_device_lacks_is_named(trained: Path, tmp_path: Path) -> None:
    line = [
        "--arch", "small_resnet", "--path", trained, "--dataset", "digits", "--target", NPU,
        "--quant_scheme", "uniform5", "--save_path", tmp_path, "-j", 0,
    ]  # fmt: skip
    arguments = build_parser().parse_args(list(map(str, line)))
    with pytest.raises(OmpqError, match=r"stages\.0\.0\.conv1 has 5 bits, conv may have 4, 8"):
        prepare_run(arguments, read_settings(arguments), Ranks(), torch.device("cpu"))
