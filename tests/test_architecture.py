"""The shape of the house: who imports whom, and what importing does."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from support import ROOT, run_command

STAGES = ("mixed_bit", "PTQ", "QAT")
SOURCES = sorted(
    file
    for folder in ("ompq", *STAGES, "recipes", "examples", "benchmarks")
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
    assert not imported(ROOT / name) & (others | {"tests", "recipes", "examples", "benchmarks"})


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def imports_at_load(file: Path, modules: set[str]) -> set[str]:
    """Our modules that a file imports when it is imported itself, its packages aside."""
    found: set[str] = set()
    for node in _statements(ast.parse(file.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            # A module is imported from its package, anything else from the package itself.
            found |= inside if inside <= modules else {node.module}
    return found & modules - {module_of(file)}


def _statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements that run at import: not those of functions, nor those for type checkers."""
    found = []
    for node in body:
        found.append(node)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.If | ast.With | ast.Try):
            found += _statements(node.body)
    return found


def test_nothing_imports_in_a_circle() -> None:
    files = {module_of(file): file for file in LIBRARY}
    graph = {name: imports_at_load(file, set(files)) for name, file in files.items()}
    order = TopologicalSorter(graph)
    order.prepare()  # raises CycleError and names the circle


def test_the_published_configurations_stand_alone() -> None:
    ours = {"ompq", *STAGES, "tests", "examples", "benchmarks"}
    assert not imported(ROOT / "bit_config.py") & ours


@pytest.mark.parametrize("file", sorted((ROOT / "tests" / "ompq").rglob("*.py")), ids=str)
def test_tests_of_the_shared_package_import_no_stage(file: Path) -> None:
    assert not imported(file) & set(STAGES)


@pytest.mark.parametrize("file", sorted((ROOT / "tests").rglob("test_*.py")), ids=str)
def test_tests_mirror_the_sources(file: Path) -> None:
    folder = file.parent.relative_to(ROOT / "tests")
    assert (ROOT / folder).is_dir(), f"there is no {folder} that {file.name} could be a test of"


@pytest.mark.parametrize("name", names(LIBRARY))
def test_flags_are_known_in_options_alone(name: str) -> None:
    if Path(name).name == "options.py":
        return
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.search(r"(?<![\w-])--[a-zA-Z]\w+", node.value), node.value


@pytest.mark.parametrize("name", names(SOURCES))
def test_no_function_takes_more_than_six_arguments_by_position(name: str) -> None:
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = [*node.args.posonlyargs, *node.args.args]
            count = len(given) - (bool(given) and given[0].arg in ("self", "cls", "ctx"))
            assert count <= 6, f"{node.name} takes {count}"


def test_no_package_holds_what_looks_like_its_installer() -> None:
    assert not [file for file in LIBRARY if file.name == "setup.py"]


@pytest.mark.parametrize("package", ["ompq", *STAGES])
def test_the_face_gives_what_it_promises(package: str) -> None:
    """Each name once in `__all__`, for type checkers, and from its home when asked for."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        alias.name
        for node in ast.walk(checked)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    face = importlib.import_module(package)
    assert typed == set(face.__all__) == set(dir(face))
    assert all(getattr(face, name) is not None for name in face.__all__)
    with pytest.raises(AttributeError, match="no attribute"):
        face.nonsense  # noqa: B018


def test_a_face_imports_nothing_until_it_is_asked() -> None:
    code = "import ompq, mixed_bit, PTQ, QAT, sys; assert 'torch' not in sys.modules"
    run = run_command([sys.executable, "-c", code], ROOT)
    assert run.returncode == 0, run.stderr


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
