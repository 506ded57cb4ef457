"""Runs that meet each other: one folder, moved checkpoints, other weights, several processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import ENVIRONMENT, ROOT, run_command

from ompq.errors import OmpqError
from ompq.runtime import Ranks, seed_everything
from QAT.options import build_parser
from QAT.quant_train import run, train
from QAT.training import BEST, LAST

EARLIER = ROOT / "tests" / "earlier"
TIMES = ("seconds", "training_seconds", "arguments", "command")
HOLDER = """
import sys
from ompq.files import lock_folder
with lock_folder(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""
NETWORK = '''
import torch
from torch import nn

class Net(nn.Module):
    """Norms that follow a layer and that do not, over all processes, averaging in two ways."""

    def __init__(self, num_classes=2):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.branch = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.before = nn.SyncBatchNorm(8), nn.BatchNorm2d(8, momentum=None)
        self.behind, self.head = nn.SyncBatchNorm(8, momentum=None), nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.behind(self.branch(self.before(x).relu()))
        return self.head(x.relu().mean((2, 3)))
'''


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    return [
        "-a", f"{EARLIER / 'tiny.py'}:make", "--path", str(EARLIER / "tiny.pth"), "--dataset",
        "digits", "--data_percentage", "0.1", "--epochs", "2", "--batch_size", "48", "--lr",
        "0.01", "--quant_scheme", "uniform4", "--workers", "0", "--save_path",
        str(tmp_path / "out"),
    ]  # fmt: skip


def result(options: list[str]) -> dict:
    arguments = build_parser().parse_args(options)
    seed_everything(arguments.seed)
    content = train(arguments, Ranks(), torch.device("cpu"))
    return {key: value for key, value in content.items() if key not in TIMES}


def message_of(*options: object) -> str:
    parser = build_parser()
    with pytest.raises(OmpqError) as caught:
        run(parser.parse_args([*map(str, options)]))
    return parser.in_flags(str(caught.value))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def interrupt(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until the second epoch, and no further."""
    from QAT.training import _TrainingRun

    first = _TrainingRun.train_epoch
    with monkeypatch.context() as patched:
        patched.setattr(_TrainingRun, "train_epoch", lambda s, e: first(s, e) if e < 1 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            result(options)


def test_a_folder_is_one_runs_alone_until_that_ends(options: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, env=ENVIRONMENT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    before = contents(folder)
    told = message_of(*options)
    assert f"{folder} is in use by a run that has not ended (process {holder.pid} on" in told
    assert "give another --output_dir" in told and "\n" not in told
    assert "in use" in message_of(*options, "--resume")
    assert contents(folder) == before
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert result(options)["steps"] == 6
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


def test_a_copied_checkpoint_goes_on_where_it_is_told(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = result(options)
    shutil.move(tmp_path / "out", tmp_path / "whole")
    interrupt(options, monkeypatch)
    copied = tmp_path / "copies" / "at noon.tar"
    copied.parent.mkdir()
    shutil.copy(tmp_path / "out" / LAST, copied)
    # Without the best state beside it first, then with it.
    for name in ("alone", "together"):
        before = contents(copied.parent)
        again = result([*options, "--resume", str(copied), "--save_path", str(tmp_path / name)])
        assert contents(copied.parent) == before
        assert again == whole
        states = [torch.load(tmp_path / n / LAST)["network"] for n in ("whole", name)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
        shutil.copy(tmp_path / "out" / BEST, copied.parent)


def test_a_renamed_checkpoint_goes_on_in_its_folder(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(options, monkeypatch)
    folder = tmp_path / "out"
    renamed = (folder / LAST).rename(folder / "kept.tar")
    kept = renamed.read_bytes()
    without = options[: options.index("--save_path")]
    monkeypatch.chdir(tmp_path)
    assert result([*without, "--resume", str(renamed)])["steps"] == 6
    assert renamed.read_bytes() == kept and (folder / LAST).is_file()
    assert not (tmp_path / "qat_output").exists()
    # A second time, what came of it makes room.
    assert result([*without, "--resume", str(renamed)])["steps"] == 6
    assert (folder / "earlier-1" / LAST).is_file() and renamed.read_bytes() == kept


def test_the_weights_that_a_run_began_with_bind_it(options: list[str], tmp_path: Path) -> None:
    short = [*options, "--epochs", "1"]
    made = result(short)
    moved = shutil.copy(EARLIER / "tiny.pth", tmp_path / "moved.pth")
    assert result([*short, "--resume", "--path", str(moved)]) == made
    other = tmp_path / "other.pth"
    state = torch.load(EARLIER / "tiny.pth", weights_only=True)
    torch.save({name: value * 1.5 for name, value in state.items()}, other)
    told = message_of(*short, "--resume", "--path", other)
    assert f"began with the weights of {EARLIER / 'tiny.pth'}, not of {other}" in told
    # As earlier versions wrote it, without the weights among what binds.
    last = torch.load(tmp_path / "out" / LAST)
    del last["fingerprint"]["weights"]
    torch.save(last, tmp_path / "out" / LAST)
    assert result([*short, "--resume"]) == made


def lines_with(text: str, words: str) -> list[str]:
    return [line for line in text.splitlines() if words in line]


@pytest.mark.slow
def test_two_processes_do_what_one_does_and_say_it_once(photos: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(photos, tmp_path / "images"))
    for file in sorted((images / "val").rglob("*.jpg"))[1:]:
        file.unlink()
    # A class without a picture, and a picture that is none, which falls to the second rank.
    broken = images / "val" / "temple" / "zz.jpg"
    broken.parent.mkdir(exist_ok=True)
    broken.write_bytes(b"no picture")
    (tmp_path / "net.py").write_text(NETWORK)
    common = [
        "-a", "net.py:Net", "--dataset", "imagenet", "--data", str(images), "--input_size", "32",
        "--epochs", "2", "--batch_size", "4", "--lr", "0.001", "--quant_scheme", "uniform8",
        "--workers", "0", "--amp",
    ]  # fmt: skip
    script = str(ROOT / "QAT/quant_train.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    one = run_command([sys.executable, script, *common, "--save_path", "one"], tmp_path)
    assert one.returncode == 0, one.stderr
    two = run_command([*launch, script, *common, "--save_path", "two"], tmp_path)
    assert two.returncode == 0, two.stderr
    alone, shared = (
        json.loads((tmp_path / n / "results.json").read_text()) for n in ("one", "two")
    )
    assert alone["skipped_images"] == shared["skipped_images"] == [str(broken)]
    assert alone["num_eval"] == shared["num_eval"] == 1
    assert len(lines_with(two.stdout, "unreadable image(s) skipped")) == 1
    assert "Traceback" not in two.stderr
    assert len(two.stdout.splitlines()) == len(one.stdout.splitlines())
    assert len(lines_with(two.stdout, "batch norms estimated anew")) == 1
    assert alone["top1_re_estimated"] == shared["top1_re_estimated"]
    states = [torch.load(tmp_path / n / LAST)["network"] for n in ("one", "two")]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0.02, atol=0.02, msg=name)
    assert states[1]["operations.before.function.before.norm.num_batches_tracked"] == 6
    # Evaluation, and an error, of several processes are told once.
    asked = ["--evaluate", "two", "--dataset", "imagenet", "--data", str(images)]
    read = run_command([*launch, script, *asked], tmp_path)
    assert read.returncode == 0 and len(lines_with(read.stdout, "top-1")) == 1, read.stderr
    blocked = {**os.environ, "OMP_NUM_THREADS": "1"}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "two")], cwd=ROOT, env=blocked,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    refused = run_command([*launch, script, *common, "--save_path", "two"], tmp_path)
    holder.communicate()
    assert refused.returncode != 0
    assert len(lines_with(refused.stderr, "error: two is in use")) == 1
