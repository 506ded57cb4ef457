"""The stages as Python code meets them: a module and loaders of one's own, in and out."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from support import lively
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mixed_bit import SearchSettings, build_evaluator, search
from ompq import OmpqError, evaluate, load_quantized, save_quantized, trace, uniform
from PTQ import Settings, quantize_network
from QAT import TrainingSettings, fine_tune, prepare, verify

STEPS = Settings(weight_iterations=20, act_iterations=5)


class Own(nn.Module):
    """A network of one's own, for grey images of 8 × 8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.body(x) + x)
        return self.head(x.mean((2, 3)))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return lively(Own())


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def loader(images: Tensor) -> DataLoader:
    labels = torch.arange(24) % 4
    return DataLoader(TensorDataset(images, labels), batch_size=8)


def test_a_search_takes_tensors_batches_and_loaders(network, images, loader) -> None:
    asked = SearchSettings("PTQ", size_mb=0.0002, metric="sqnr", candidate_bits=(2, 4, 8))
    before = copy.deepcopy(network.state_dict())
    found = [
        search(given, source, asked).bits
        for given in (network, trace(network, (1, 8, 8)))
        for source in (images, [images], images.split(8), loader)
    ]
    assert all(bits == found[0] for bits in found)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_several_batches_are_the_unbiased_estimate(network, images, loader) -> None:
    asked = SearchSettings("PTQ", size_mb=0.0002)
    at_once = build_evaluator(network, images, asked).orthogonality
    in_batches = build_evaluator(network, loader, asked).orthogonality
    assert (at_once.unbiased, in_batches.unbiased) == (False, True)
    assert at_once.num_images == in_batches.num_images == 24
    with pytest.raises(OmpqError, match="no calibration images"):
        search(network, [], asked)
    with pytest.raises(OmpqError, match=r"give floats, n × channels × height × width"):
        search(network, images[0], asked)


def test_reconstruction_needs_a_network_bits_and_images(network, images, loader, capsys) -> None:
    bits = uniform(trace(network, (1, 8, 8)).groups, 3)
    by_tensor, blocks = quantize_network(network, bits, images, STEPS)
    by_loader, _ = quantize_network(network, bits, loader, STEPS, say=lambda _: None)
    assert torch.equal(by_tensor.module(images), by_loader.module(images))
    assert {layer for block in blocks for layer in block.layers} == {"stem.0", "body", "head"}
    assert "stem" in capsys.readouterr().out


@pytest.mark.parametrize("batches", ["loader", "list"])
def test_fine_tuning_keeps_what_is_best_and_leaves_no_files(
    batches: str, network, images, loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = loader if batches == "loader" else list(loader)
    bits = uniform(trace(network, (1, 8, 8)).groups, 4)
    integers = prepare(network, bits, loader)
    before = evaluate(integers.module, given).top1
    settings = TrainingSettings(epochs=2, learning_rate=0.05)
    progress = fine_tune(integers, given, given, settings, say=lambda _: None)
    assert [entry["epoch"] for entry in progress.history] == [0, 1, 2]
    after = evaluate(integers.module, given).top1
    assert after == progress.best_top1 >= before
    assert verify(integers, given).equal == 24
    assert not list(tmp_path.iterdir())


def test_fine_tuning_writes_where_it_is_told(network, loader, tmp_path: Path) -> None:
    integers = prepare(network, uniform(trace(network, (1, 8, 8)).groups, 4), loader)
    settings = TrainingSettings(epochs=1, learning_rate=0.01)
    fine_tune(integers, loader, loader, settings, folder=tmp_path / "out", say=lambda _: None)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"checkpoint.pth.tar", "model_best.pth.tar"}


@pytest.mark.parametrize("stage", ["PTQ", "QAT"])
def test_a_module_of_ones_own_is_saved_and_read_back(
    stage: str, network, images, tmp_path: Path
) -> None:
    bits = uniform(trace(network, (1, 8, 8)).groups, 4)
    if stage == "PTQ":
        simulated, _ = quantize_network(network, bits, images, STEPS, say=lambda _: None)
        quantized = simulated.deployed
    else:
        quantized = prepare(network, bits, images)
    file = tmp_path / "own.safetensors"
    save_quantized(file, quantized, bits)
    read = load_quantized(file, Own())
    with torch.no_grad():
        assert torch.equal(read.network.module(images), quantized.module(images))
    assert read.preprocess.channels == 1
    with pytest.raises(OmpqError, match=r"own, Own; read it in Python by load_quantized"):
        load_quantized(file)
    with pytest.raises(OmpqError, match=r"another network|does not fit|is not in|does not hold"):
        load_quantized(file, nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 4)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(3, 8, 8), "is 3×8×8; give floats"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "is uint8; give floats"),
        ([{"image": torch.zeros(2, 1, 8, 8)}], "holds a dict; give floats"),
        ([], "no calibration images"),
        (torch.full((2, 1, 8, 8), torch.nan), "calibration image 0 (of 2 such) holds NaN"),
        (torch.zeros(2, 3, 8, 8), "cannot run on one image of 3×8×8"),
    ],
)
def test_images_that_are_none_are_named(given, message: str, network) -> None:
    bits = uniform(trace(network, (1, 8, 8)).groups, 4)
    for call in (
        lambda: search(network, given, SearchSettings("PTQ", size_mb=1.0)),
        lambda: quantize_network(network, bits, given, STEPS),
        lambda: prepare(network, bits, given),
    ):
        with pytest.raises(OmpqError) as refused:
            call()
        assert message in str(refused.value)


def test_what_is_no_assignment_or_budget_is_named(network, images) -> None:
    for call in (
        lambda: quantize_network(network, [4, 4, 4], images, STEPS),
        lambda: prepare(network, [4, 4, 4], images),
    ):
        with pytest.raises(OmpqError, match=r"is a list; make one of a bit list by ompq\.assign"):
            call()
    with pytest.raises(OmpqError, match="`size_mb` '4': a budget is a number"):
        SearchSettings("PTQ", size_mb="4")


def test_images_in_float64_are_taken_for_what_they_are(network, images) -> None:
    asked = SearchSettings("PTQ", size_mb=0.0002, metric="sqnr", candidate_bits=(2, 4, 8))
    assert search(network, images.double(), asked).bits == search(network, images, asked).bits


def test_batches_that_are_no_pairs_are_named(network, images) -> None:
    integers = prepare(network, uniform(trace(network, (1, 8, 8)).groups, 4), images)
    good = [(images, torch.zeros(24, dtype=torch.int64))]
    for bad in ([images], [{"image": images}], [(images,)]):
        for call in (
            lambda bad=bad: evaluate(network, bad),
            lambda bad=bad: verify(integers, bad),
            lambda bad=bad: fine_tune(integers, bad, good, say=lambda _: None),
            lambda bad=bad: fine_tune(integers, good, bad, say=lambda _: None),
        ):
            with pytest.raises(OmpqError, match="give pairs of two tensors"):
                call()


def test_what_belongs_to_another_network_is_refused(network, images) -> None:
    torch.manual_seed(0)
    other = Own()
    other.body = nn.Conv2d(6, 6, 5, padding=2)
    foreign = uniform(trace(nn.Sequential(nn.Conv2d(1, 4, 3)), (1, 8, 8)).groups, 4)
    larger = uniform(trace(other, (1, 8, 8)).groups, 4)
    for bits, message in ((foreign, "layer 0 differs"), (larger, "of other sizes")):
        with pytest.raises(OmpqError, match=message):
            quantize_network(network, bits, images, STEPS)
        with pytest.raises(OmpqError, match=message):
            prepare(network, bits, images)


def test_labels_that_are_no_class_numbers_are_refused(network, images) -> None:
    for labels in (torch.zeros(24, 4), torch.zeros(24), torch.zeros(23, dtype=torch.int64)):
        with pytest.raises(OmpqError, match="give n whole class numbers"):
            evaluate(network, [(images, labels)])


def test_a_fine_tuning_needs_training_images(network, images) -> None:
    integers = prepare(network, uniform(trace(network, (1, 8, 8)).groups, 4), images)
    good = [(images, torch.zeros(24, dtype=torch.int64))]
    with pytest.raises(OmpqError, match="no training images"):
        fine_tune(integers, [], good, say=lambda _: None)


def test_a_result_is_shown_in_a_line(network, images) -> None:
    asked = SearchSettings("PTQ", size_mb=0.0002, metric="sqnr", candidate_bits=(2, 4, 8))
    shown = repr(search(network, images, asked))
    assert "proven optimal" in shown and "\n" not in shown
    with pytest.raises(OmpqError, match="`candidate_bits` is empty"):
        SearchSettings("PTQ", size_mb=1.0, candidate_bits=())
