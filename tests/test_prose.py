"""How the code speaks: docstrings that open with a verb and are read alone; examples that hold."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

PACKAGES = ("ompq", "mixed_bit", "PTQ", "QAT", "recipes", "examples", "benchmarks", "docs")
FILES = sorted(file for name in PACKAGES for file in (ROOT / name).rglob("*.py"))
FILES.append(ROOT / "bit_config.py")
# Imperatives with which a function's docstring may open.
VERBS = frozenset(
    """
    accept accumulate add adopt adjust advance allocate analyse append apply arrange ask
    assemble assign attach average begin blend bound branch bring build calculate calibrate call
    cast change check choose clamp clear clip close collect combine compare complete compute
    concatenate connect consume continue convert convolve copy correct correlate count cover
    create cut decide decode dequantize derive describe detect determine disable discard distil
    divide do download draw drop enable encode end ensure enter erase estimate evaluate exchange
    exclude execute exit expand explain export express extend extract fake-quantize fetch fill
    filter find fine-tune finish fit flatten flip fold follow forget format freeze gather
    generate get give go group guard hand hold identify import initialise insert install invert
    join judge keep learn leave let limit list load locate lock look lower make map mark mask
    match measure merge minimise mix move multiply name narrow normalise note observe offer open
    order pack pad pair parse pass penalise perform pick pin place plan plot point predict
    prepare print process project propagate protect prove prune put quantize raise rank read
    rebuild recompute reconstruct record recover redistribute reduce refuse register reject
    release rely remap remember remove rename render reorder repeat replace report represent
    reproduce require requantize rescale reset reshape resize resolve restore restrict resume
    retrieve return reuse reverse rewrite round run sample save say scale scan search seed
    select send separate set settle share shift show shuffle simulate skip solve sort split
    spread stack start state stop store stretch subtract sum swap switch synchronise take tell
    test throw tie tighten time trace track train transform translate traverse treat trim try
    turn undo unpack update use validate verify view visit wait walk warn watch weigh wrap write
    yield
    """.split()
)
LEAST_VERB_SHARE = 0.6


def documented(file: Path) -> Iterator[tuple[str, str]]:
    """Where a function stands, and its docstring."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield f"{file.relative_to(ROOT)}:{node.name}", text


DOCSTRINGS = [found for file in FILES for found in documented(file)]


def opens_with_verb(text: str) -> bool:
    first = re.match(r"[\w-]+", text)
    return first is not None and first[0].lower() in VERBS


def test_docstrings_of_functions_open_with_a_verb() -> None:
    others = [
        f"{where}: {text.splitlines()[0]}"
        for where, text in DOCSTRINGS
        if not opens_with_verb(text)
    ]
    share = 1 - len(others) / len(DOCSTRINGS)
    assert share >= LEAST_VERB_SHARE, f"{share:.0%}\n" + "\n".join(others)


def test_a_docstring_is_read_alone() -> None:
    """No sentence that consists of "The same …", no argument that is "of the …"."""
    riddles = []
    for where, text in DOCSTRINGS:
        if re.match(r"The same\b[^.]*\.?$", text.strip()):
            riddles.append(f"{where}: {text}")
        for line in re.findall(
            r"^\s+\w+: (of (?:the|both|that|this)\b.*)$", text, flags=re.MULTILINE
        ):
            riddles.append(f"{where}: {line}")
    assert not riddles, "\n".join(riddles)


MODULES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in FILES
    if ">>>" in file.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


def test_pure_functions_have_examples() -> None:
    assert len(MODULES) >= 10
