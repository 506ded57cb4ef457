"""What the README says is so: its commands parse, its figures are what the code gives."""

from __future__ import annotations

import re
import shlex

import pytest
import torchvision
from support import ROOT

import bit_config
from examples import train_float
from mixed_bit import compare, feature_extract, measure_latency, model_cost
from ompq.assignment import resolve
from ompq.graph import trace
from PTQ import main_imagenet
from QAT import options as quant_train

README = (ROOT / "README.md").read_text(encoding="utf-8")
PARSERS = {
    "feature_extract.py": feature_extract.build_parser,
    "compare.py": compare.build_parser,
    "measure_latency.py": measure_latency.build_parser,
    "model_cost.py": model_cost.build_parser,
    "main_imagenet.py": main_imagenet.build_parser,
    "train_float.py": train_float.build_parser,
    "quant_train.py": quant_train.build_parser,
}


def commands() -> list[tuple[str, list[str]]]:
    """Every call of a script in a code block, as (script, arguments)."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            for name in PARSERS:
                places = [i for i, word in enumerate(words) if word.endswith(name)]
                if places:
                    found.append((name, words[places[0] + 1 :]))
    return found


@pytest.mark.parametrize(("name", "arguments"), commands())
def test_commands_parse(name: str, arguments: list[str]) -> None:
    parsed = PARSERS[name]().parse_args(arguments)
    assert parsed.model or parsed.evaluate


def test_there_are_commands() -> None:
    assert {name for name, _ in commands()} == set(PARSERS)
    assert not re.search(r"\\[ \t]+#", README), "a comment after a line's backslash"


def test_every_published_row_has_its_measured_figures() -> None:
    rows = re.findall(r"^\| `(\S+)`[^|]*\| ([\d.]+) \| ([\d.]+)", README, flags=re.MULTILINE)
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


def test_files_that_the_documents_name_exist() -> None:
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for path in re.findall(r"\]\((?!http|#)([^)]+)\)", text):
            assert (ROOT / path).exists(), f"{document} names {path}"
