"""What the README says is so: its commands parse, its figures are what the code gives."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest
import torchvision
from support import ROOT, run_command

import bit_config
from docs import build_options
from examples import photographs, train_float
from mixed_bit import options as bits
from ompq.assignment import resolve
from ompq.export.options import build_parser as build_export_parser
from ompq.graph import trace
from PTQ import options as ptq
from QAT import options as qat

DOCUMENTS = ("README.md", "docs/results.md", "docs/experiments.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
PARSERS = {
    "feature_extract.py": bits.build_search_parser,
    "compare.py": bits.build_compare_parser,
    "main_imagenet.py": ptq.build_parser,
    "train_float.py": train_float.build_parser,
    "photographs.py": photographs.build_parser,
    "quant_train.py": qat.build_parser,
    "ompq-bits": bits.build_search_parser,
    "ompq-compare": bits.build_compare_parser,
    "ompq-export": build_export_parser,
    "ompq-cost": bits.build_cost_parser,
    "ompq-latency": bits.build_latency_parser,
    "ompq-ptq": ptq.build_parser,
    "ompq-qat": qat.build_parser,
}


def code_lines(text: str) -> list[str]:
    """Lines of all shell blocks, continued ones joined."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def commands() -> list[tuple[str, list[str]]]:
    """Every call of a script in a code block, as (script, arguments)."""
    found = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for line in code_lines(text):
            words = shlex.split(line, comments=True)
            for name in PARSERS:
                places = [i for i, word in enumerate(words) if word.endswith(name)]
                if places:
                    found.append((name, words[places[0] + 1 :]))
    return found


@pytest.mark.parametrize(("name", "arguments"), commands())
def test_commands_parse(name: str, arguments: list[str]) -> None:
    PARSERS[name]().parse_args(arguments)


def test_there_are_commands() -> None:
    assert {name for name, _ in commands()} == set(PARSERS)
    assert not re.search(r"\\[ \t]+#", README), "a comment after a line's backslash"


def test_every_published_row_has_its_measured_figures() -> None:
    table = RESULTS.split("## The published configurations", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `(\S+)`[^|]*\| ([\d.]+) \| ([\d.]+)", table, flags=re.MULTILINE)
    assert [row[0] for row in rows] == list(bit_config.PUBLISHED)
    names = {"mobilenetv2": "mobilenet_v2"}
    groups = {
        row.network: trace(
            getattr(torchvision.models, names.get(row.network, row.network))(), (3, 224, 224)
        ).groups
        for row in bit_config.PUBLISHED.values()
    }
    for scheme, size, bops in rows:
        row = bit_config.PUBLISHED[scheme]
        assignment = resolve(scheme, groups[row.network], row.quant_type)
        assert f"{assignment.size_mb:.4f}" == size
        assert f"{assignment.published_bops_g:.2f}" == bops


def test_files_and_headings_that_the_documents_name_exist() -> None:
    for document in (*DOCUMENTS, "CONTRIBUTING.md", "docs/file-formats.md", "docs/options.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
            path, _, heading = link.partition("#")
            file = (ROOT / document).parent / path if path else ROOT / document
            assert file.exists(), f"{document} names {path}"
            if heading:
                titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}
                assert heading in anchors, f"{document} names {link}"


def test_the_readme_is_a_front_door() -> None:
    lines = README.splitlines()
    assert len(lines) <= 170
    assert not [line for line in lines if len(line) > 130]


def python_lines() -> str:
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(block.splitlines()) <= 25
    return block


@pytest.mark.slow
def test_the_python_of_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    """On a module and loaders of the user's own, in a folder of their own."""
    source = f"""
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)


def block(channels, wider, stride=1):
    layers = [nn.Conv2d(channels, wider, 3, stride, 1, bias=False), nn.BatchNorm2d(wider)]
    return nn.Sequential(*layers, nn.ReLU())


network = nn.Sequential(
    block(1, 32), block(32, 64, 2), block(64, 64),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
)
pixels, labels = load_digits(return_X_y=True)
images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16 - 0.3
labels = torch.tensor(labels)
train = DataLoader(TensorDataset(images[:1400], labels[:1400]), 50, shuffle=True)
test = DataLoader(TensorDataset(images[1400:], labels[1400:]), 100)
optimizer = torch.optim.Adam(network.parameters(), 2e-3)
for _ in range(6):
    for x, y in train:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
images = images[:256]
{python_lines().replace("500", "100").replace("200", "40")}
with torch.no_grad():
    assert torch.equal(read.network.module(images), integers.module(images))
"""
    run = run_command([sys.executable, "-c", source], tmp_path, PYTHONPATH=str(ROOT))
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("[")
    reconstructed, tuned, integers, again = map(
        float, re.findall(r"top-1 ([\d.]+) %, top-5", run.stdout)
    )
    assert reconstructed > 85
    assert tuned == integers == again > 85
    assert "397 of 397" in run.stdout
    assert "model.integer.onnx" in run.stdout and "0 of 80 logits differ" in run.stdout
    written = {"ptq.safetensors", "qat.safetensors", "exported"}
    assert {file.name for file in tmp_path.iterdir()} == written


def test_the_options_page_is_current() -> None:
    """`make docs` writes it."""
    assert build_options.PAGE.read_text(encoding="utf-8") == build_options.render_page()


def test_the_demonstration_imports_from_the_faces_alone() -> None:
    tree = ast.parse((ROOT / "examples" / "demo.py").read_text(encoding="utf-8"))
    ours = ("ompq", "mixed_bit", "PTQ", "QAT")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(ours):
            assert node.module in ours
