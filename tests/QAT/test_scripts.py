"""quant_train.py as users start it."""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from forked import start_forked
from support import ENVIRONMENT, ROOT, lively, run_command

from ompq import artifact
from ompq.adoption import adopt
from ompq.assignment import uniform
from ompq.errors import OmpqError
from ompq.graph import fold_batch_norm, trace
from ompq.integer import ConversionSettings, IntegerNetwork, convert_to_integers
from ompq.runtime import Ranks, seed_everything
from ompq.zoo import load_network
from PTQ.quantize import round_to_nearest
from PTQ.settings import Settings
from QAT.options import build_parser, read_settings, torchrun_command
from QAT.quant_train import run, train

SCRIPT = "QAT/quant_train.py"
CPU = torch.device("cpu")
TIMES = ("seconds", "training_seconds", "arguments", "command")


@pytest.fixture
def options(trained: Path, tmp_path: Path) -> list[str]:
    return [
        "-a", "small_resnet", "--path", str(trained), "--dataset", "digits", "--data_percentage",
        "0.2", "--epochs", "2", "--batch_size", "48", "--lr", "0.01", "--quant_scheme", "uniform3",
        "--workers", "0", "--save_path", str(tmp_path / "output"),
    ]  # fmt: skip


def result(options: list[str]) -> dict:
    arguments = build_parser().parse_args(options)
    seed_everything(arguments.seed)
    return train(arguments, Ranks(), CPU)


def message_of(*options: object) -> str:
    """What a user reads of a command that fails."""
    parser = build_parser()
    with pytest.raises(OmpqError) as caught:
        run(parser.parse_args([*map(str, options)]))
    return parser.in_flags(str(caught.value))


def untimed(file: Path) -> dict:
    content = json.loads(file.read_text())
    return {key: value for key, value in content.items() if key not in TIMES}


def test_it_trains_writes_and_proves_itself_on_integers(
    script, options: list[str], tmp_path: Path
) -> None:
    made = script(SCRIPT, *options)
    assert made.returncode == 0, made.stderr
    lines = [line for line in made.stdout.splitlines() if "top-1" in line]
    assert lines[0].startswith("float: top-1")
    content = json.loads((tmp_path / "output" / "results.json").read_text())
    assert content["num_eval"] == 359 and content["integers_only"]
    assert content["top1"] >= content["top1_before"]
    assert len(content["history"]) == 3 and content["steps"] == 12
    assert (tmp_path / "output" / "training.png").is_file()
    again = script(SCRIPT, "--evaluate", tmp_path / "output", "--dataset", "digits")
    assert f"top-1 {content['top1']:.2f} %" in again.stdout, again.stderr
    proof = script(SCRIPT, "-e", "--save_path", tmp_path / "output", "--dataset", "digits",
                   "--integer_only")  # fmt: skip
    assert proof.returncode == 0, proof.stderr
    assert f"top-1 {content['top1']:.2f} %" in proof.stdout
    assert "359 of 359 images give the logits of the simulation to the bit" in proof.stdout


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_numbers(
    options: list[str], tmp_path: Path
) -> None:
    options = [*options, "--checkpoint_iter", "2"]
    whole = run_command([sys.executable, str(ROOT / SCRIPT), *options], tmp_path)
    assert whole.returncode == 0, whole.stderr
    expected = untimed(tmp_path / "output" / "results.json")
    shutil.rmtree(tmp_path / "output")
    command = [sys.executable, str(ROOT / SCRIPT), *options, "--resume"]
    file = tmp_path / "output" / "checkpoint.pth.tar"
    chosen = random.Random(0)
    for _ in range(3):
        before = file.stat().st_mtime_ns if file.exists() else 0
        process = start_forked(command, tmp_path, ENVIRONMENT)
        while process.is_alive() and (not file.exists() or file.stat().st_mtime_ns == before):
            time.sleep(0.005)
        time.sleep(chosen.random() * 0.3)
        process.kill()
        process.join()
    ended = run_command(command, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert untimed(tmp_path / "output" / "results.json") == expected


@pytest.mark.slow
@pytest.mark.parametrize(("starter", "fixed"), [("torchrun", True), ("multiprocessing", False)])
def test_two_ranks_give_the_one_process_result(
    options: list[str], tmp_path: Path, starter: str, fixed: bool
) -> None:
    # Few bits and large steps would make of a last digit's difference another rounding.
    options = ["uniform8" if option == "uniform3" else option for option in options]
    options += ["--data_percentage", "0.2003", "--lr", "0.001", *(["--fix_BN"] if fixed else [])]
    result(options)
    alone = json.loads((tmp_path / "output" / "results.json").read_text())
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    extra = ["--save_path", str(tmp_path / "shared")]
    if starter == "multiprocessing":
        launch, extra = [], [*extra, "--multiprocessing_distributed"]
    command = [sys.executable, *launch, str(ROOT / SCRIPT), *options, *extra]
    both = run_command(command, tmp_path)
    assert both.returncode == 0, both.stderr
    shared = json.loads((tmp_path / "shared" / "results.json").read_text())
    for one, two in zip(alone["history"], shared["history"], strict=True):
        assert one["step"] == two["step"]
        # Rank 0 tells the loss of its own half.
        assert two["top1"] == pytest.approx(one["top1"], abs=0.6)
    weights = [
        torch.load(tmp_path / folder / "checkpoint.pth.tar", weights_only=True)["network"]
        for folder in ("output", "shared")
    ]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize(
    "choice",
    [
        ["--quantizer", "lsq"],
        ["--fix_BN_threshold", "3", "--evaluate_times", "2"],
        ["--quant_mode", "asymmetric", "--act_range_momentum", "-1"],
        ["--channel_wise", "false"],
        ["--act_percentile", "99.9", "--weight_percentile", "99"],
        ["--amp"],
    ],
    ids=lambda choice: choice[0],
)
def test_every_choice_changes_the_training_and_works(
    choice: list[str], options: list[str], tmp_path: Path
) -> None:
    plain = result(options)
    other = result([*options, "--save_path", str(tmp_path / "other"), *choice])
    assert other["top1"] > 85
    assert [e["loss"] for e in other["history"]] != [e["loss"] for e in plain["history"]]


def test_narrow_biases_are_felt(options: list[str], tmp_path: Path) -> None:
    wide = result([*options, "--fix_BN"])
    narrow = result([*options, "--fix_BN", "--bias_bit", "6", "--save_path", str(tmp_path / "six")])
    assert narrow["top1_before"] < wide["top1_before"]
    assert narrow["history"][1]["loss"] > wide["history"][1]["loss"]


@pytest.mark.parametrize("choice", [["--fixed_point_quantization"], ["--bias_bit", "0"]])
def test_choices_that_no_integers_can_follow_are_told(
    choice: list[str], options: list[str], tmp_path: Path
) -> None:
    content = result([*options, *choice])
    assert content["top1"] > 85 and not content["integers_only"]
    asked = ["--evaluate", tmp_path / "output", "--dataset", "digits", "--integer_only"]
    assert "does not run on integers alone" in message_of(*asked)


def test_a_teacher_is_listened_to(options: list[str], trained: Path, tmp_path: Path) -> None:
    taught = result(
        [*options, "--distill_method", "KD_naive", "--teacher_arch", "small_resnet",
         "--teacher_path", str(trained)]
    )  # fmt: skip
    plain = result([*options, "--save_path", str(tmp_path / "plain")])
    assert taught["history"][1]["loss"] != plain["history"][1]["loss"]
    assert taught["top1"] > 85


def test_it_starts_where_ptq_ended(options: list[str], trained: Path, tmp_path: Path) -> None:
    ptq = run_command(
        [sys.executable, str(ROOT / "PTQ/main_imagenet.py"), "-a", "small_resnet", "--path",
         str(trained), "--dataset", "digits", "--bit_cfg", "uniform2", "--act_quant",
         "--n_bits_a", "8", "--channel_wise", "--iters_w", "100", "--iters_a", "20",
         "--num_samples", "256", "--workers", "0", "--output_dir", str(tmp_path / "ptq")],
        tmp_path,
    )  # fmt: skip
    assert ptq.returncode == 0, ptq.stderr
    found = json.loads((tmp_path / "ptq" / "results.json").read_text())
    rest = [option for option in options if option not in ("--quant_scheme", "uniform3")]
    content = result([*rest, "--lr", "0.001", "--init_from", str(tmp_path / "ptq")])
    assert content["bits"] == found["bits"]
    assert content["top1_before"] == pytest.approx(found["top1"], abs=0.6)
    assert content["top1"] >= found["top1"] - 0.3
    assert content["bops_g"] == found["bops_g"]
    with pytest.raises(OmpqError, match="holds weights of"):
        result([*rest, "--quant_scheme", "uniform4", "--init_from", str(tmp_path / "ptq")])
    with pytest.raises(OmpqError, match="holds activations of"):
        result([*rest, "--act_bits", "4", "--init_from", str(tmp_path / "ptq")])


def test_scales_of_ptq_go_where_the_network_is() -> None:
    graph = trace(load_network("small_resnet").module, (3, 16, 16))
    widths = uniform(graph.groups, 4)
    rounded_network = round_to_nearest(graph, widths, Settings())
    network = convert_to_integers(
        fold_batch_norm(graph), widths.layer_bits(), widths.layer_act_bits(), ConversionSettings()
    )
    network.module.to("meta")
    adopt(network, rounded_network)
    assert {buffer.device.type for buffer in network.module.buffers()} == {"meta"}


def test_networks_without_integer_form_train_and_say_which(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    torch.save(
        lively(load_network("timm:convnextv2_atto", num_classes=2).module).state_dict(), file
    )
    content = result(
        ["-a", "timm:convnextv2_atto", "--path", str(file), "--dataset", "imagenet", "--data",
         str(photos), "--input_size", "64", "--epochs", "1", "--batch_size", "4", "--workers", "0",
         "--save_path", str(tmp_path / "out")]
    )  # fmt: skip
    assert not content["integers_only"]
    assert "norm" in content["float_operations"].values()
    read = artifact.load_quantized(tmp_path / "out")
    assert isinstance(read.network, IntegerNetwork) and not read.integers


def test_a_network_of_the_users_own_with_a_shared_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "import torch\nfrom torch import nn\n"
        "class Own(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(16, 10)\n"
        "        self.shared = nn.Conv2d(8, 8, 3, padding=1, groups=2)\n"
        "    def forward(self, x):\n"
        "        x = self.stem(x).relu()\n"
        "        y = self.shared(self.shared(x).relu())\n"
        "        return self.head(torch.cat([x, y], 1).mean((2, 3)))\n"
    )
    content = result(
        ["-a", f"{file}:Own", "--dataset", "digits", "--epochs", "1", "--workers", "0",
         "--save_path", str(tmp_path / "out")]
    )  # fmt: skip
    assert content["integers_only"]
    asked = ["--evaluate", str(tmp_path / "out"), "--dataset", "digits", "--integer_only"]
    run(build_parser().parse_args(asked))
    assert "359 of 359 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--quant_scheme", "modelsize_6.7_a6_75B"], "is for resnet18"),
        (["--bit_cfg", "[4]", "--quant_scheme", "uniform4"], "not allowed with"),
        (["--path", "/nowhere.pth"], "does not exist; give --path"),
        (["--data_percentage", "0"], "--data_percentage is 0.0; it is a share between 0 and 1"),
        (["--dataset", "images", "--data", str(ROOT / "docs")], "no labels"),
        (["--batch_size", "0"], "cannot be shared"),
        (["--temperature", "0"], "--temperature is 0.0"),
        (["--lr", "-1"], "--lr is -1.0"),
        (["--wd", "-1"], "--wd is -1.0"),
        (["--evaluate_times", "0"], "--evaluate_times is 0"),
        (["--checkpoint_iter", "-2"], "--checkpoint_iter is -2"),
        (["--print_freq", "-1"], "--print_freq is -1"),
        (["--fix_BN_threshold", "-1"], "--fix_BN_threshold is -1"),
        (["--act_range_momentum", "2"], "--act_range_momentum is 2.0"),
        (["--weight_percentile", "-1"], "--weight_percentile is -1.0"),
        (["--bias_bit", "40"], "--bias_bit is 40"),
        (["--start_epoch", "3"], "--start_epoch is 3; with --epochs 2"),
        (["--integer_only"], "goes with --evaluate"),
        (["--evaluate", "/nowhere"], "does not exist"),
        (["--resume", "/nowhere.tar"], "does not exist"),
        (["--resume_quantize"], "goes with --resume"),
        (["--init_from", "/nowhere"], "does not exist"),
        (["--distill_method", "KD_naive", "--teacher_path", "/nowhere"], "does not exist"),
        (["--teacher_path", "/nowhere"], "--teacher_path goes with --distill_method KD_naive"),
        (["--distill_method", "KD_naive", "--teacher_arch", "small_resnet"], "with --teacher_path"),
        (["--lr", "1e30"], "training diverged by step 6"),
        (["--world_size", "2", "--multiprocessing_distributed"], "--dist_url"),
    ],
)
def test_what_cannot_be_done_says_why(change: list[str], message: str, options: list[str]) -> None:
    told = message_of(*options, *change)
    assert message in told
    assert "`" not in told, "a field that no option sets"


def test_torchrun_gets_the_machines_and_the_command() -> None:
    parsed = build_parser().parse_args
    alone = torchrun_command(parsed([]), 2, ["script.py", "--amp"])
    assert alone[1:] == [
        "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "script.py", "--amp",
    ]  # fmt: skip
    among = parsed(["--world_size", "3", "--rank", "1", "--dist_url", "tcp://host:29500"])
    assert torchrun_command(among, 8, ["script.py"])[3:] == [
        "--nproc_per_node=8", "--nnodes=3", "--node_rank=1", "--master_addr=host",
        "--master_port=29500", "script.py",
    ]  # fmt: skip
    with pytest.raises(OmpqError, match="write it tcp://HOST:PORT"):
        torchrun_command(parsed(["--dist_url", "host"]), 2, [])


def test_a_run_with_other_options_does_not_go_on(options: list[str]) -> None:
    result(options)
    with pytest.raises(OmpqError, match=r"lr 0\.01, not 0\.02"):
        result([*options, "--resume", "--lr", "0.02"])
    assert result([*options, "--resume"])["steps"] == 12


def test_an_unfinished_run_is_not_overwritten(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("QAT.training._TrainingRun.train_epoch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        result(options)
    monkeypatch.undo()
    told = message_of(*options)
    assert "unfinished run (0 of 12 steps); add --resume to go on" in told
    assert "give another --output_dir" in told
    assert result([*options, "--resume"])["steps"] == 12


def test_an_earlier_run_is_moved_and_not_lost(options: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "output"
    result([*options, "--epochs", "1"])
    made = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    assert {"checkpoint.pth.tar", "model_best.pth.tar", "results.json"} < set(made)
    result([*options, "--lr", "0.02"])
    aside = {file.name: file.read_bytes() for file in (folder / "earlier-1").iterdir()}
    assert aside == made
    result([*options, "--lr", "0.02", "--resume"])
    assert not (folder / "earlier-2").exists()


def test_every_training_option_reaches_the_settings() -> None:
    plain = read_settings(build_parser().parse_args([]))
    for option, field, value in (
        ("--epochs", "epochs", 7),
        ("--lr", "learning_rate", 0.5),
        ("--momentum", "momentum", 0.5),
        ("--wd", "weight_decay", 0.5),
        ("--fix_BN_threshold", "fix_norms", 9),
        ("--distill_alpha", "distill_alpha", 0.5),
        ("--temperature", "temperature", 2.0),
        ("--evaluate_times", "evaluations", 3),
        ("--checkpoint_iter", "checkpoint_steps", 5),
        ("--print_freq", "print_steps", 3),
    ):
        changed = read_settings(build_parser().parse_args([option, str(value)]))
        assert getattr(changed, field) == value != getattr(plain, field)


def test_scalars_for_tensorboard(options: list[str], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    content = result([*options, "--tensorboard"])
    events = accumulator.EventAccumulator(str(tmp_path / "output" / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("top1")]
    trained = content["history"][1:]
    assert shown == [(entry["step"], pytest.approx(entry["top1"])) for entry in trained]
    assert len(events.Scalars("loss")) == len(trained)


def test_apex_is_asked_for_or_named_as_missing(options: list[str]) -> None:
    try:
        from apex.parallel import DistributedDataParallel  # noqa: F401
    except ImportError:
        with pytest.raises(OmpqError, match="needs NVIDIA Apex"):
            result([*options, "--apex"])
    else:
        with pytest.raises(OmpqError, match="between processes"):
            result([*options, "--apex"])
