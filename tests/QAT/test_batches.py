"""Batches that trainings meet: a last image alone, labels of nobody, loaders that end early."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from ompq import trace, uniform
from ompq.errors import OmpqError
from ompq.integer import IntegerNetwork
from QAT import ConversionSettings, TrainingSettings, fine_tune, prepare
from QAT.batches import drop_smaller, iterate_steps
from QAT.training import Progress

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(33, 3, 8, 8, generator=GENERATOR)
LABELS = torch.randint(4, (33,), generator=GENERATOR)


class Deep(nn.Module):
    """A network whose second norm sees one value per channel and image."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6)
        self.b, self.last = nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.a(x)))
        return self.head(torch.relu(self.last(self.b(x))).flatten(1))


def convert(**settings: bool) -> IntegerNetwork:
    torch.manual_seed(0)
    network = Deep().eval()
    bits = uniform(trace(network, (3, 8, 8)).groups, 4)
    return prepare(network, bits, IMAGES, ConversionSettings(**settings), say=lambda _: None)


def batches(size: int, labels: Tensor = LABELS) -> list[tuple[Tensor, Tensor]]:
    return list(zip(IMAGES.split(size), labels.split(size), strict=True))


def train(given: object, **options: object) -> Progress:
    settings = TrainingSettings(epochs=2, learning_rate=0.01)
    return fine_tune(convert(), given, batches(16), settings, say=lambda _: None, **options)


@pytest.mark.parametrize("size", [16, 32])
def test_a_last_image_alone_is_left_out(size: int) -> None:
    progress = train(batches(size))
    assert progress.step == 2 * len(batches(size))
    losses = [entry["loss"] for entry in progress.history[1:]]
    assert len(losses) == 2 and all(loss is not None and math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize("done", range(5))
def test_steps_are_those_that_are_left(done: int) -> None:
    """Of batches that are one fewer than the steps."""
    given = batches(11)
    found = list(iterate_steps(given, done, 4, drop_last_alone=True))
    assert [None if batch is None else id(batch[0]) for batch in found] == [
        *(id(images) for images, _ in given[done:]),
        *([None] if done < 4 else []),
    ]


def test_a_batch_of_one_is_dropped_at_the_end_of_an_epoch_alone() -> None:
    kept = list(iterate_steps(batches(16), 0, 3, drop_last_alone=True))
    assert [batch is None for batch in kept] == [False, False, True]
    kept = list(iterate_steps(batches(1), 0, 33, drop_last_alone=True))
    assert None not in kept
    assert None not in list(iterate_steps(batches(16), 0, 3, drop_last_alone=False))


class Shorter(list):
    """Batches of which some cannot be read."""

    def __len__(self) -> int:
        return super().__len__() + 2


def test_fewer_batches_than_were_counted_end_the_epoch() -> None:
    progress = train(Shorter(batches(11)))
    assert progress.step == 2 * 5 and [entry["epoch"] for entry in progress.history] == [0, 1, 2]


def test_batches_without_a_length_are_refused() -> None:
    def generate() -> Iterator[tuple[Tensor, Tensor]]:
        yield from batches(16)

    with pytest.raises(OmpqError, match="`train` is a generator that has no length"):
        train(generate())


@pytest.mark.parametrize("label", [4, -1])
def test_labels_of_no_class_are_told(label: int) -> None:
    labels = LABELS.clone()
    labels[3] = label
    with pytest.raises(OmpqError, match=f"there is a label {label}, and the network tells"):
        train(batches(11, labels))


def test_labels_that_count_for_nothing_may_be_anything() -> None:
    settings = TrainingSettings(epochs=1, learning_rate=0.01, distill_alpha=1.0)
    unknown = batches(11, torch.full_like(LABELS, -1))
    progress = fine_tune(
        convert(), unknown, batches(11), settings, teacher=Deep(), say=lambda _: None
    )
    assert progress.step == 3


def test_a_teacher_teaches_in_evaluation_and_stays_as_it_was() -> None:
    torch.manual_seed(0)
    teacher = Deep()
    teacher.head.eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    found = [train(batches(11), teacher=teacher).history]
    assert [part.training for part in (teacher, teacher.norm, teacher.head)] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    found.append(train(batches(11), teacher=teacher.eval()).history)
    assert found[0] == found[1]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_a_teacher_that_tells_something_else_is_refused() -> None:
    with pytest.raises(OmpqError, match="teacher: the network gives a tuple"):
        train(batches(11), teacher=Pair())


def test_only_whole_batches_count_for_norms() -> None:
    assert [len(b) for b in drop_smaller(iter(IMAGES.split(16)))] == [16, 16]
    assert [len(b) for b in drop_smaller(iter(IMAGES.split(40)))] == [33]


def test_channels_of_zeros_learn_to_leave_them() -> None:
    torch.manual_seed(0)
    network = Deep().eval()
    network.b.weight.data[:3] = 0
    bits = uniform(trace(network, (3, 8, 8)).groups, 4)
    learned = ConversionSettings(learned=True)
    converted = prepare(network, bits, IMAGES, learned, say=lambda _: None)
    settings = TrainingSettings(epochs=10, learning_rate=0.05, weight_decay=1e-4)
    fine_tune(converted, batches(11), batches(11), settings, say=lambda _: None)
    layer = converted.layers()["b"]
    params = layer.fake_quantizer.compute_params(layer.layer.weight)
    assert bool((params.scale > 1e-4).all())
    rounded = layer.fake_quantizer(layer.layer.weight, params)
    assert bool(rounded[:3].flatten(1).any(1).all())
