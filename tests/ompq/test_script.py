"""How scripts begin and end: interrupted, with a mistake, alone and among several ranks."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ENVIRONMENT, ROOT, heed_interrupts, run_command

from ompq.errors import OmpqError
from ompq.options import Parser
from ompq.script import run_script

SCRIPTS = [
    "mixed_bit/feature_extract.py",
    "mixed_bit/compare.py",
    "mixed_bit/model_cost.py",
    "mixed_bit/measure_latency.py",
    "PTQ/main_imagenet.py",
    "QAT/quant_train.py",
    "examples/demo.py",
]


@pytest.fixture
def interrupting_import(tmp_path: Path) -> Path:
    """A folder whose `torch`, once imported, receives Ctrl-C."""
    file = tmp_path / "torch" / "__init__.py"
    file.parent.mkdir()
    file.write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, "by path") for name in SCRIPTS),
        ("mixed_bit/feature_extract.py", "as a module"),
        ("QAT/quant_train.py", "as a command"),
    ],
)
def test_an_interrupted_import_ends_in_one_line(
    name: str, way: str, interrupting_import: Path
) -> None:
    module = name.removesuffix(".py").replace("/", ".")
    arguments = {
        "by path": [str(ROOT / name)],
        "as a module": ["-m", module],
        "as a command": ["-c", f"from {module} import main; main()"],
    }[way]
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**ENVIRONMENT, "PYTHONPATH": str(interrupting_import)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        preexec_fn=heed_interrupts,
    )
    assert (run.returncode, run.stderr) == (130, "interrupted\n")


SWALLOWING = """
import os, signal, time
from ompq.script import interruptible_imports
with interruptible_imports():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except BaseException:
        pass
    {then}
print("went on")
"""


@pytest.mark.parametrize("then", ["pass", "import nowhere"])
def test_an_interrupt_that_a_library_swallows_counts(then: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SWALLOWING.format(then=then)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        preexec_fn=heed_interrupts,
    )
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "interrupted\n")


PRINTING = """
import argparse, sys, warnings
from ompq.script import run_script

class Parser(argparse.ArgumentParser):
    in_flags = staticmethod(str)

def run(arguments):
    print("8 \u2192 4")
    warnings.warn("narrow")

sys.argv = ["some.py"]
run_script(Parser, run)
"""


def test_any_terminal_takes_what_is_printed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PRINTING]
    for encoding, printed in (("utf-8", "8 → 4\n"), ("latin-1", "8 ? 4\n"), ("ascii", "8 ? 4\n")):
        run = run_command(command, ROOT, PYTHONIOENCODING=encoding)
        assert (run.returncode, run.stdout) == (0, printed)
        assert "narrow" in run.stderr


def test_other_ranks_print_and_warn_nothing() -> None:
    run = run_command([sys.executable, "-c", PRINTING], ROOT, RANK="1", WORLD_SIZE="2")
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


FREEING = """
import argparse, resource
import torch
from ompq.script import run_script

class Parser(argparse.ArgumentParser):
    in_flags = staticmethod(str)

def run(arguments):
    for _ in range(20):  # until the heap has grown as far as it needs to
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

import sys
sys.argv = ["some.py"]
run_script(Parser, run)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_memory_that_was_freed_is_used_again() -> None:
    command = [sys.executable, "-c", FREEING]
    kept = run_command(command, ROOT)
    assert kept.returncode == 0, kept.stderr
    # Four times 64 MiB are 65536 pages of 4 KiB.
    assert int(kept.stdout) < 1000
    tuned = run_command(command, ROOT, MALLOC_MMAP_THRESHOLD_="1000000")
    assert int(tuned.stdout) > int(kept.stdout)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_full_disk_behind_the_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, "-c", PRINTING.replace('warnings.warn("narrow")', "pass")],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert run.returncode == 2
    assert run.stderr == "error: cannot write what is printed: No space left on device\n"


@pytest.mark.slow
def test_of_several_ranks_one_prints_the_error(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = [str(ROOT / "mixed_bit/feature_extract.py"), "--model", "no_such_network"]
    run = run_command([sys.executable, *launch, *script, "--model_size", "1"], tmp_path)
    assert run.returncode != 0
    assert len(re.findall(r"^error: .*no_such_network", run.stderr, re.MULTILINE)) == 1


def build_parser() -> Parser:
    parser = Parser(prog="some.py", fields={"size_mb": "model_size"})
    parser.add_argument("-m", "--model_size", type=float)
    parser.add_argument("--num_images", type=int)
    return parser


def test_a_mistake_is_told_with_the_flags_of_the_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: object) -> None:
        raise OmpqError("`size_mb` 0 and `num_images`\n are wrong, `elsewhere` and `x.y` are not")

    for typed, flag in (
        ([], "--model_size"),
        (["-m", "1"], "-m"),
        (["--model_size=1"], "--model_size"),
    ):
        monkeypatch.setattr(sys, "argv", ["some.py", *typed])
        with pytest.raises(SystemExit) as ended:
            run_script(build_parser, run)
        assert ended.value.code == 2
        assert capsys.readouterr().err == (
            f"error: {flag} 0 and --num_images are wrong, `elsewhere` and `x.y` are not\n"
        )


def test_a_flag_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["some.py", "--nowhere"])
    with pytest.raises(SystemExit) as ended:
        run_script(build_parser, lambda _: None)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_notes_are_printed_with_the_flags_of_the_script(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = build_parser().parse_args([])
    arguments.parser.print_notes(["`num_images` is few", "so be it"])
    assert capsys.readouterr().out == "note: --num_images is few\nnote: so be it\n"
