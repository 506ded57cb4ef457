"""feature_extract.py and compare.py beyond the paper's metric, as users start them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mixed_bit import compare, feature_extract
from ompq.errors import OmpqError

FIND = "mixed_bit/feature_extract.py"
COMPARE = "mixed_bit/compare.py"
QUANTIZE = "PTQ/main_imagenet.py"
TUNE = "QAT/quant_train.py"


@pytest.fixture
def common(trained: Path, tmp_path: Path) -> list[object]:
    return [
        "--model", "small_resnet", "--path", trained, "--dataset", "digits",
        "--num_images", 16, "--output_dir", tmp_path / "output",
    ]  # fmt: skip


def find(*options: object) -> None:
    """What the script does, without a process of its own."""
    arguments = feature_extract.build_parser().parse_args(list(map(str, options)))
    feature_extract.write(feature_extract.extract(arguments), arguments.output_dir)


def read(folder: Path, name: str = "bit_config.json") -> dict:
    return json.loads((folder / "output" / name).read_text())


@pytest.mark.parametrize("metric", ["sqnr", "fisher", "kl", "hessian", "orm_sqnr"])
def test_every_metric_prices_every_width(metric: str, common, tmp_path: Path) -> None:
    options = [*common, "--quant_type", "PTQ", "--model_size", 0.06, "--metric", metric]
    find(*options)
    config = read(tmp_path)
    find(*options)
    assert read(tmp_path)["bits"] == config["bits"]
    assert config["optimal"] is True
    assert config["model_size_mb"] <= 0.06
    assert config["metric"] == metric
    assert (tmp_path / "output" / "orthogonality.npy").is_file() == (metric == "orm_sqnr")
    for group in config["groups"]:
        prices = group["prices"]
        assert set(prices) == {"2", "3", "4"}
        assert prices["2"] > prices["4"] >= 0


@pytest.mark.slow
def test_a_metric_from_the_command_line(script, common, tmp_path: Path) -> None:
    options = ["--quant_type", "PTQ", "--model_size", 0.06, "--metric", "fisher"]
    run = script(FIND, *common, *options)
    assert run.returncode == 0, run.stderr
    assert "prices by fisher; the work of 3.0 forward passes" in run.stdout
    assert "Bit configuration (PTQ): [" in run.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "--metric", "orm"], "fisher or hessian"),
        (["--sweep", 0.05, 0.07], "--sweep LOW HIGH takes the place of --model_size"),
        (["--sweep_points", 3], "goes with --sweep"),
        (["--auto", "--solver", "lp"], "--solver lp"),
        (["--act_bits", "4,8"], "--bops"),
        (["--act_bits", "9"], "2 to 8"),
        (["--latency", 1], "--latency_table"),
    ],
)
def test_choices_that_do_not_go_together(options, message: str, common) -> None:
    with pytest.raises(OmpqError) as refused:
        find(*common, "--quant_type", "PTQ", "--model_size", 0.06, *options)
    told = feature_extract.build_parser().in_flags(str(refused.value))
    assert message in told
    assert "`" not in told
    assert "\n" not in told


def test_labels_where_there_are_some(common, photos: Path, tmp_path: Path) -> None:
    options = ["--quant_type", "PTQ", "--model_size", 0.06, "--metric", "fisher", "--labels"]
    find(*common, *options)
    given = [group["prices"] for group in read(tmp_path)["groups"]]
    find(*common, *options[:-1])
    assert given != [group["prices"] for group in read(tmp_path)["groups"]]
    bare = [*common[:4], "--dataset", "images", "--save_path", photos / "val" / "temple"]
    with pytest.raises(OmpqError, match="has none; leave it out"):
        find(*bare, *common[6:], *options, "--num_images", 2)


@pytest.mark.slow
def test_auto_tells_what_it_tried(script, common, tmp_path: Path) -> None:
    run = script(FIND, *common, "--quant_type", "PTQ", "--model_size", 0.06, "--auto")
    assert run.returncode == 0, run.stderr
    assert "chosen by measured divergence" in run.stdout
    config = read(tmp_path)
    tried = {entry["method"]: entry["kl"] for entry in config["auto"]}
    assert {"kl", "fisher", "orm β=10", "projection", "random 20"} <= set(tried)
    winner = config["note"].rsplit(": ", 1)[1]
    assert tried[winner] == min(tried.values())


@pytest.mark.slow
@pytest.mark.parametrize("auto", [[], ["--auto", "--sweep_points", 3]])
def test_a_sweep_writes_the_front_and_its_knee(auto, script, common, tmp_path: Path) -> None:
    options = ["--quant_type", "PTQ", "--metric", "sqnr", "--sweep", 0.045, 0.08, *auto]
    run = script(FIND, *common, *options)
    assert run.returncode == 0, run.stderr
    points = read(tmp_path, "sweep.json")["points"]
    assert len(points) == 3 if auto else len(points) > 20
    assert all(0.04 <= point["model_size_mb"] <= 0.08 for point in points)
    (marked,) = [point for point in points if point["knee"]]
    assert marked["bits"] == read(tmp_path)["bits"]
    assert "knee" in run.stdout
    assert (tmp_path / "output" / "sweep.png").is_file()


@pytest.mark.slow
def test_searched_activation_widths_are_quantized_and_trained(
    script, common, trained: Path, tmp_path: Path
) -> None:
    options = ["--model_size", 0.12, "--bops", 0.07, "--act_bits", "4,6,8", "--metric", "sqnr"]
    run = script(FIND, *common, *options)
    assert run.returncode == 0, run.stderr
    config = read(tmp_path)
    chosen = {group["act_bits"] for group in config["groups"]}
    assert len(chosen) > 1
    assert chosen <= {4, 6, 8}
    assert config["bops_g"] <= 0.07
    listed = tmp_path / "output" / "bit_config.json"
    network = ["--arch", "small_resnet", "--path", trained, "--dataset", "digits"]
    few = ["--num_samples", 32, "--iters_w", 5, "--iters_a", 5, "--act_quant"]
    ptq = tmp_path / "ptq"
    run = script(QUANTIZE, *network, "--bit_cfg", listed, *few, "--output_dir", ptq)
    assert run.returncode == 0, run.stderr
    result = json.loads((ptq / "results.json").read_text())
    assert result["bops_g"] == pytest.approx(config["bops_g"])
    run = script(TUNE, *network, "--bit_cfg", listed, "--epochs", 1, "--save_path", tmp_path / "q")
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "q" / "results.json").read_text())
    assert result["bops_g"] == pytest.approx(config["bops_g"])


@pytest.mark.slow
def test_compare_is_deterministic_and_complete(script, common, tmp_path: Path) -> None:
    options = ["--quant_type", "PTQ", "--mean_bits", "2.5,3.5", "--num_eval", 64]
    options += ["--random", 2, "--ranked", 5]
    contents = []
    for _ in range(2):
        run = script(COMPARE, *common, *options)
        assert run.returncode == 0, run.stderr
        content = read(tmp_path, "compare.json")
        contents.append({key: content[key] for key in ("rows", "correlations", "top1")})
    assert contents[0] == contents[1]
    assert (tmp_path / "output" / "compare.png").is_file()
    assert "rank correlation with the measured KL over 5 allocations" in run.stdout
    assert contents[0]["top1"] > 80
    budgets = sorted({row["budget_mb"] for row in contents[0]["rows"]})
    assert len(budgets) == 2
    assert all(row["size_mb"] <= row["budget_mb"] for row in contents[0]["rows"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "0.001"], "is below 0.0"),
        (["--sizes", "0.06", "--random", "-1"], "--random"),
        (["--sizes", "0.06", "--num_eval", "1"], "--num_eval 1"),
        (["--mean_bits", "1"], "the least with these widths"),
    ],
)
def test_compare_refuses_what_makes_no_sense(options, message: str, common) -> None:
    given = list(map(str, [*common, "--quant_type", "PTQ", *options]))
    parser = compare.build_parser()
    with pytest.raises(OmpqError) as refused:
        compare.compare_from(parser.parse_args(given))
    told = parser.in_flags(str(refused.value))
    assert message in told
    assert "`" not in told


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--sizes", "0.06,x"], ["--mean_bits", "nan"]])
def test_compare_refuses_in_one_line(options, script, common) -> None:
    run = script(COMPARE, *common, *options)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
    assert "--mean_bits" in run.stderr or "--sizes" in run.stderr


@pytest.mark.slow
def test_compare_tells_what_weakens_it(script, photos: Path, tmp_path: Path) -> None:
    """Random weights, and a folder whose images both price and judge."""
    options = ["--model", "small_resnet", "--dataset", "images", "--num_images", 4, "--sizes", 0.1]
    few = ["--random", 0, "--ranked", 2, "--num_eval", 4, "--output_dir", tmp_path]
    folder = photos / "train" / "temple"
    run = script(COMPARE, *options, *few, "--save_path", folder)
    assert run.returncode == 0, run.stderr
    assert "note: the network has random weights" in run.stdout
    assert "images that judge are among those that prices come from" in run.stdout
