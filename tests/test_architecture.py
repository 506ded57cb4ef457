"""The shape of the house: who imports whom, and what importing does."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from support import ROOT, run_command

STAGES = ("mixed_bit", "PTQ", "QAT")
SOURCES = sorted(
    file
    for folder in ("ompq", *STAGES, "examples", "benchmarks")
    for file in (ROOT / folder).rglob("*.py")
)
LIBRARY = [file for file in SOURCES if file.relative_to(ROOT).parts[0] in ("ompq", *STAGES)]


def names(files: list[Path]) -> list[str]:
    return [str(file.relative_to(ROOT)) for file in files]


def imported(file: Path) -> set[str]:
    """Top-level names that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("name", names(LIBRARY))
def test_stages_stand_side_by_side_on_the_shared_package(name: str) -> None:
    own = name.split("/")[0]
    others = set(STAGES) - {own}
    assert not imported(ROOT / name) & (others | {"tests", "examples", "benchmarks"})


@pytest.mark.parametrize("name", names(SOURCES))
def test_nothing_is_evaluated_swallowed_or_spilled(name: str) -> None:
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec")
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, "bare except"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names)
        if isinstance(node, ast.Global):
            raise AssertionError("global state")


def test_importing_is_light() -> None:
    """No CUDA, no DALI, no command line, no optional package."""
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in LIBRARY
    ]
    code = (
        "import importlib, sys\n"
        "sys.argv = ['script', '--nonsense']\n"
        f"for name in {modules!r}:\n    importlib.import_module(name)\n"
        "import torch\n"
        "assert not torch.cuda.is_initialized()\n"
        "loaded = [m for m in sys.modules if m.startswith(('nvidia.dali', 'pytorchcv'))]\n"
        "assert not loaded, loaded\n"
    )
    run = run_command([sys.executable, "-c", code], ROOT)
    assert run.returncode == 0, run.stderr


def test_run_scripts_have_no_comment_after_a_continuation() -> None:
    for file in ROOT.glob("*/*/*.sh"):
        for line in file.read_text().splitlines():
            assert not line.rstrip().endswith("\\") or "#" not in line
            assert "\\ " not in line
