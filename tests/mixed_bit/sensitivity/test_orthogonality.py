"""The orthogonality matrix against its formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from support import lively

from mixed_bit.sensitivity.features import Shard, measure_orthogonality
from mixed_bit.sensitivity.orthogonality import compute_gram, compute_inner_products, normalise
from ompq.errors import OmpqError
from ompq.graph import run_with_taps, trace


def compute_orm_by_formula(features: list[torch.Tensor], centred: bool) -> np.ndarray:
    """Compute the matrix slowly and obviously, in float64."""
    count = features[0].shape[0]
    centring = np.eye(count) - np.ones((count, count)) / count if centred else np.eye(count)
    grams = []
    for feature in features:
        rows = feature.flatten(1).double().numpy()
        grams.append(centring @ (rows @ rows.T) @ centring)
    return np.array(
        [
            [(one * two).sum() / np.linalg.norm(one) / np.linalg.norm(two) for two in grams]
            for one in grams
        ]
    )


def multiply_grams(*features: torch.Tensor, unbiased: bool = False) -> torch.Tensor:
    grams = torch.stack([compute_gram(feature) for feature in features])
    return compute_inner_products(grams, unbiased=unbiased)


@pytest.mark.parametrize("centred", [True, False])
def test_a_real_networks_matrix_is_that_of_the_formula(centred: bool) -> None:
    torch.manual_seed(0)
    graph = trace(lively(torchvision.models.resnet18(num_classes=10)), (3, 64, 64))
    images = torch.randn(12, 3, 64, 64) + 1
    features: list[torch.Tensor] = []
    taps = [group.tap for group in graph.groups]
    run_with_taps(graph, images, taps, lambda _, value: features.append(value.clone()))
    measured = measure_orthogonality(graph, graph.groups, [Shard(images, 12)], centred=centred)
    expected = compute_orm_by_formula(features, centred)
    np.testing.assert_allclose(measured.matrix, expected, atol=1e-5)
    assert measured.matrix.dtype == np.float64
    np.testing.assert_array_equal(measured.matrix, measured.matrix.T)
    np.testing.assert_array_equal(measured.matrix.diagonal(), 1)


def test_nearly_equal_features_keep_their_precision() -> None:
    """A large common offset must not drown what differs between images."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(8, 5000, generator=generator) + 300 for _ in range(3)]
    matrix, constant = normalise(multiply_grams(*features))
    np.testing.assert_allclose(matrix.numpy(), compute_orm_by_formula(features, True), atol=1e-5)
    assert constant == []


@given(
    images=st.integers(2, 9),
    width=st.integers(1, 40),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-5, 5),
    seed=st.integers(0, 10_000),
)
def test_invariances(images: int, width: int, scale: float, shift: float, seed: int) -> None:
    """Centred ORM ignores scale, shift and rotation of a feature, and the order of the images."""
    generator = torch.Generator().manual_seed(seed)
    one = torch.randn(images, width, generator=generator)
    two = torch.randn(images, 7, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    order = torch.randperm(images, generator=generator)

    def entry(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(normalise(multiply_grams(a, b))[0][0, 1])

    value = entry(one, two)
    assert 0 <= value <= 1
    assert entry(one @ rotation * scale + shift, two) == pytest.approx(value, abs=2e-3)
    assert entry(one[order], two[order]) == pytest.approx(value, abs=1e-5)
    assert entry(one, one) == pytest.approx(1, abs=1e-12)


def test_columns_shared_between_ranks_add_up() -> None:
    feature = torch.randn(6, 10_000)
    whole = compute_gram(feature)
    shares = [slice(0, 3333), slice(3333, None)]
    total = sum(compute_gram(feature, columns=share) for share in shares)
    torch.testing.assert_close(total, whole, rtol=1e-6, atol=1e-3)


def compute_hsic_by_formula(one: np.ndarray, two: np.ndarray) -> float:
    """Compute HSIC₁ of Song et al. (2012), eq. 5, on hollow matrices."""
    n = len(one)
    k, m = one - np.diag(np.diag(one)), two - np.diag(np.diag(two))
    ones = np.ones(n)
    total = np.trace(k @ m) + (ones @ k @ ones) * (ones @ m @ ones) / (n - 1) / (n - 2)
    return (total - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))


@pytest.mark.parametrize("images", [4, 5, 9])
def test_the_unbiased_estimator_is_that_of_the_formula(images: int) -> None:
    features = [torch.randn(images, 30) for _ in range(3)]
    grams = torch.stack([compute_gram(feature) for feature in features])
    products = compute_inner_products(grams, unbiased=True).numpy()
    for i in range(3):
        for j in range(3):
            expected = compute_hsic_by_formula(grams[i].numpy(), grams[j].numpy())
            assert products[i, j] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_minibatches_estimate_what_many_images_give() -> None:
    """The mean over small batches approaches the value of all images; the biased one does not."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2000, 6, generator=generator)
    one = base @ torch.randn(6, 80, generator=generator)
    two = torch.relu(one[:, :50]) + torch.randn(2000, 50, generator=generator)
    whole = normalise(multiply_grams(one, two, unbiased=True))[0][0, 1]
    sums = {True: 0.0, False: 0.0}
    for start in range(0, 2000, 8):
        batch = [feature[start : start + 8] for feature in (one, two)]
        for unbiased in sums:
            sums[unbiased] = sums[unbiased] + multiply_grams(*batch, unbiased=unbiased)
    estimate = {unbiased: normalise(total)[0][0, 1] for unbiased, total in sums.items()}
    assert abs(estimate[True] - whole) < 0.02
    assert abs(estimate[False] - whole) > 0.04


def test_the_estimator_needs_four_images() -> None:
    with pytest.raises(ValueError, match="needs 4 images"):
        compute_inner_products(torch.eye(3).expand(2, 3, 3).double(), unbiased=True)


def test_a_constant_feature_counts_as_redundant() -> None:
    features = [torch.randn(6, 50), torch.full((6, 70), 3.3), torch.randn(6, 20)]
    matrix, constant = normalise(multiply_grams(*features))
    assert constant == [1]
    assert matrix[1].tolist() == [1, 1, 1]
    assert matrix[0, 2] < 1


def build_small_graph():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    )
    return trace(network, (3, 8, 8))


def test_weights_that_are_not_finite_name_the_group() -> None:
    graph = build_small_graph()
    graph.layer_module("3").weight[0, 0] = torch.nan
    with pytest.raises(OmpqError, match="feature of 3 is not finite"):
        measure_orthogonality(graph, graph.groups, [Shard(torch.randn(4, 3, 8, 8), 4)])


@pytest.mark.parametrize(("images", "message"), [(1, "1 image"), (0, "0 image")])
def test_too_few_images(images: int, message: str) -> None:
    graph = build_small_graph()
    with pytest.raises(OmpqError, match=message):
        measure_orthogonality(graph, graph.groups, [Shard(torch.randn(images, 3, 8, 8), images)])
    with pytest.raises(OmpqError, match="no calibration images"):
        measure_orthogonality(graph, graph.groups, [])


def test_only_one_feature_is_held_at_a_time() -> None:
    """What a tap gave is freed once its Gram matrix is computed and the next layer has run."""
    import weakref

    graph = build_small_graph()
    seen: list[weakref.ref] = []
    alive_at_most = 0

    def watch(tap: str, value: torch.Tensor) -> None:
        nonlocal alive_at_most
        seen.append(weakref.ref(value))
        alive_at_most = max(alive_at_most, sum(reference() is not None for reference in seen))

    deep = torch.nn.Sequential(*[torch.nn.Conv2d(3, 3, 1) for _ in range(6)])
    graph = trace(deep, (3, 8, 8))
    run_with_taps(graph, torch.randn(2, 3, 8, 8), [g.tap for g in graph.groups], watch)
    assert len(seen) == 6
    assert alive_at_most <= 2
