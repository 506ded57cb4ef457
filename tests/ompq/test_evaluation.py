"""Accuracy, agreement and divergence against their definitions in float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ompq.errors import OmpqError
from ompq.evaluation import (
    Predictions,
    doubt_accuracy,
    draw_labels,
    evaluate,
    flatten_logits,
    kl_divergence,
    predict,
)

CPU = torch.device("cpu")


def draw_logits(seed: int, images: int, classes: int) -> Tensor:
    # A permutation: no two classes of an image are equally likely.
    generator = np.random.default_rng(seed)
    ranks = generator.permuted(np.tile(np.arange(classes), (images, 1)), axis=1)
    return torch.from_numpy(ranks * generator.uniform(0.1, 3, (images, 1))).float()


def softmax(logits: Tensor) -> np.ndarray:
    shifted = np.exp(logits.double().numpy() - logits.double().numpy().max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def as_batches(logits: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Images that are their own logits, so that `nn.Identity` predicts them."""
    return list(zip(logits.split(4), labels.split(4), strict=True))


@given(seed=st.integers(0, 10**6), images=st.integers(1, 11), classes=st.integers(2, 12))
def test_accuracy_is_the_share_of_labels_among_the_likeliest(
    seed: int, images: int, classes: int
) -> None:
    logits = draw_logits(seed, images, classes)
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, classes, images))
    found = evaluate(nn.Identity(), as_batches(logits, labels), CPU)
    order = np.argsort(-logits.double().numpy(), axis=1)
    hits = order == labels.numpy()[:, None]
    assert found.top1 == pytest.approx(100 * hits[:, 0].mean())
    assert found.top5 == pytest.approx(100 * hits[:, :5].any(axis=1).mean())
    assert found.count == images


@given(seed=st.integers(0, 10**6), images=st.integers(1, 11), classes=st.integers(2, 12))
def test_agreement_is_the_share_of_images_with_one_likeliest_class(
    seed: int, images: int, classes: int
) -> None:
    first, second = draw_logits(seed, images, classes), draw_logits(seed + 1, images, classes)
    unlabelled = torch.full((images,), -1)
    one, other = (
        predict(nn.Identity(), as_batches(logits, unlabelled), CPU) for logits in (first, second)
    )
    equal = first.double().numpy().argmax(axis=1) == second.double().numpy().argmax(axis=1)
    assert one.agreement(other) == other.agreement(one) == pytest.approx(100 * equal.mean())
    assert one.agreement(one) == 100


@given(seed=st.integers(0, 10**6), images=st.integers(1, 11), change=st.sampled_from([1e-3, 1.0]))
def test_divergence_is_the_sum_over_images_in_nats(seed: int, images: int, change: float) -> None:
    expected = draw_logits(seed, images, 7)
    logits = expected + change * draw_logits(seed + 1, images, 7)
    p, q = softmax(expected), softmax(logits)
    assert kl_divergence(expected, logits) == pytest.approx(
        float((p * (np.log(p) - np.log(q))).sum()), rel=1e-7, abs=1e-13
    )
    assert kl_divergence(expected, expected) == 0


@pytest.mark.parametrize("labels", [[-1, -1, -1], [0, -1, 2]])
def test_images_without_labels_have_no_accuracy(labels: list[int]) -> None:
    predictions = Predictions(torch.zeros(3, 5, dtype=torch.int64), torch.tensor(labels))
    assert not predictions.has_labels
    with pytest.raises(OmpqError, match="accuracy needs labels"):
        predictions.accuracy()


def test_no_images_are_an_error() -> None:
    with pytest.raises(OmpqError, match="no images to evaluate on"):
        evaluate(nn.Identity(), [], CPU)


def test_networks_predict_in_evaluation_mode() -> None:
    logits = draw_logits(0, 8, 6)
    network = nn.Sequential(nn.Dropout(0.9)).train()
    found = predict(network, as_batches(logits, torch.arange(8) % 6), CPU)
    assert torch.equal(found.classes, logits.argsort(dim=1, descending=True)[:, :5])


def test_labels_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.5]]).expand(20_000, 3)
    drawn = draw_labels(logits, torch.Generator().manual_seed(0))
    shares = np.bincount(drawn.numpy(), minlength=3) / len(drawn)
    assert np.abs(shares - softmax(logits[:1])[0]).max() < 0.015
    assert torch.equal(drawn, draw_labels(logits, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("shape", [(3, 5, 1, 1), (3, 5, 1), (3, 5)])
def test_logits_with_further_dimensions_of_length_one_are_flattened(shape: tuple[int, ...]) -> None:
    logits = draw_logits(0, 3, 5)
    assert torch.equal(flatten_logits(logits.view(shape), 3), logits)
    network = nn.Unflatten(1, shape[1:])
    labels = logits.argmax(1)
    assert evaluate(network, as_batches(logits, labels)).top1 == 100


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(2, 3)), "gives a tuple; logits of 2 images are"),
        ({"logits": torch.zeros(2, 3)}, "gives a dict"),
        (torch.zeros(8, 3), "gives 8×3; logits of 2 images are a tensor of 2 × classes"),
        (torch.zeros(2, 3, 7, 7), "gives 2×3×7×7"),
        (torch.zeros(2), "gives 2;"),
        (torch.tensor(1.0), "gives a single number"),
    ],
)
def test_what_are_no_logits_is_refused(output: object, message: str) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> object:
            return output

    with pytest.raises(OmpqError, match=message):
        predict(Odd(), [(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64))])


@pytest.mark.parametrize(
    ("top1", "count", "classes", "suspicious"),
    [
        (0.1, 500, 1000, True),  # every label wrong, or guessed
        (0.0, 20, 1000, True),
        (5.0, 20, 1000, False),  # one of twenty is fifty times the chance
        (0.0, 2, 1000, False),  # two images tell nothing
        (10.0, 359, 10, True),
        (13.0, 359, 10, True),
        (25.0, 359, 10, False),
        (91.0, 359, 10, False),
        (0.0, 8, 10, False),
        (50.0, 1000, 2, True),
        (66.0, 1000, 2, False),
        (60.0, 20, 2, False),
        (100.0, 50, 1, False),
    ],
)
def test_an_accuracy_near_chance_is_doubted_where_images_suffice(
    top1: float, count: int, classes: int, suspicious: bool
) -> None:
    assert bool(doubt_accuracy(top1, count, classes)) == suspicious


def test_what_holds_a_network_is_not_taken_for_one() -> None:
    class Holder:
        module = nn.Linear(2, 2)

    class Read:
        network = Holder()

    for held, wanted in ((Holder(), "its `module`"), (Read(), "its `network.module`"), (3, "a t")):
        with pytest.raises(OmpqError, match=f"is a {type(held).__name__}; give {wanted}"):
            evaluate(held, [])  # type: ignore[arg-type]


def test_a_rank_may_have_no_images() -> None:
    with pytest.raises(OmpqError, match="there are no images"):
        predict(nn.Linear(2, 2), [])
    assert len(predict(nn.Linear(2, 2), [], may_be_empty=True)) == 0
