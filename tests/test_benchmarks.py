"""The benchmarks run, and what they compare is the same computation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support import lively

from benchmarks.rerunning import quantize_rerunning
from ompq.assignment import uniform
from ompq.graph import trace
from ompq.zoo import load_network
from PTQ.quantize import quantize_network
from PTQ.settings import Settings


def test_running_the_networks_anew_gives_what_one_pass_gives() -> None:
    torch.manual_seed(0)
    graph = trace(lively(load_network("small_resnet").module), (3, 16, 16))
    images = torch.randn(20, 3, 16, 16)
    # Without steps nothing is random: all that remains is which values reach which block.
    settings = Settings(weight_iterations=0, act_iterations=0)
    assignment = uniform(graph.groups, 3)
    network, _ = quantize_network(graph, assignment, images, settings)
    anew = quantize_rerunning(graph, assignment, images, settings)
    with torch.no_grad():
        assert torch.equal(anew(images), network.module(images))
        assert not torch.equal(anew(images), graph.module(images))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "figures"),
    [
        ("bit_search", ["--num_images", "4", "--repeats", "1"], {"orthogonality"}),
        (
            "ptq",
            ["--input_size", "16", "--num_images", "8", "--steps", "1", "--total_images", "8",
             "--total_size", "16", "--total_steps", "2", "1"],
            {"loop / search", "ratio", "step / plain", "total ratio", "peak memory MB"},
        ),
        ("qat", ["--steps", "1"], {"quantized ms", "frozen ms"}),
    ],
    ids=["bit_search", "ptq", "qat"],
)  # fmt: skip
def test_every_benchmark_measures(
    name: str, options: list[str], figures: set[str], script, tmp_path: Path
) -> None:
    ran = script(f"benchmarks/{name}.py", "--networks", "small_resnet", *options,
                 "--output_dir", tmp_path, "--device", "cpu")  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    content = json.loads((tmp_path / f"{name}.json").read_text())
    for row in content["rows"]:
        assert figures <= set(row), row.keys()
        assert all(row[figure] > 0 for figure in figures)
