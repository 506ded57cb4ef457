"""Sensitivity against slow float64 versions of their formulas, on a small trained-like network."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from mixed_bit.problem import Problem
from mixed_bit.sensitivity import METRICS, ProbedNetwork, fisher, hessian, kl, sqnr
from mixed_bit.sensitivity.evaluator import SensitivityEvaluator
from mixed_bit.sensitivity.features import Shard
from mixed_bit.settings import SearchSettings
from ompq.errors import OmpqError
from ompq.graph import NetworkGraph, trace
from ompq.quantizers import fake_quantize, lp_scale
from ompq.runtime import Ranks
from ompq.zoo import load_network

WIDTHS = (2, 4, 8)
ACT_WIDTHS = (3, 8)
MEASURES = {
    "sqnr": sqnr.measure,
    "fisher": fisher.measure,
    "kl": kl.measure,
    "hessian": hessian.measure,
}
ASKED = SearchSettings(
    "PTQ", size_mb=1.0, bops_g=1.0, candidate_bits=WIDTHS, candidate_act_bits=ACT_WIDTHS
)


class Small(nn.Module):
    """A residual network with in-place activations, batch norm, and a value read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.left = nn.Conv2d(6, 4, 3, padding=1)
        self.right = nn.Conv2d(6, 4, 1)
        self.last = nn.Conv2d(4, 5, 3)
        self.head = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        y = self.left(x)
        y += self.right(x)
        y = self.relu(self.last(self.relu(y)))
        return self.head(y.mean((2, 3)) * 3)


def build_network() -> nn.Module:
    torch.manual_seed(0)
    module = Small().eval()
    module.norm.running_mean.normal_()
    module.norm.running_var.uniform_(0.5, 2)
    return module


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def graph() -> NetworkGraph:
    return trace(build_network(), (3, 8, 8))


def probe(graph: NetworkGraph, images: Tensor, **options) -> ProbedNetwork:
    return ProbedNetwork.of(graph, graph.groups, images, widths=WIDTHS, **options)


def fold_in_float64() -> nn.Module:
    """Build the network in float64, its batch norm multiplied into the stem by hand."""
    module = build_network().double()
    factor = module.norm.weight / (module.norm.running_var + module.norm.eps).sqrt()
    bias = module.norm.bias - module.norm.running_mean * factor
    stem = nn.Conv2d(3, 6, 3, padding=1).double()
    stem.weight.data = module.stem.weight.data * factor.view(-1, 1, 1, 1)
    stem.bias.data = bias.detach()
    module.stem, module.norm = stem, nn.Identity()
    return module


def round_weight(weight: Tensor, width: int) -> Tensor:
    return fake_quantize(weight.float(), lp_scale(weight.float(), width)).double()


def build_table(graph: NetworkGraph, measure_layer) -> np.ndarray:
    """Build a table of groups × widths from a function of layer and width."""
    return np.array(
        [
            [sum(measure_layer(layer, width) for layer in group.layers) for width in WIDTHS]
            for group in graph.groups
        ]
    )


def test_sqnr_is_the_relative_error(graph: NetworkGraph, images: Tensor) -> None:
    module = fold_in_float64()

    def measure(layer: str, width: int) -> float:
        weight = module.get_submodule(layer).weight.detach()
        return float((weight - round_weight(weight, width)).square().sum() / weight.square().sum())

    sensitivity = MEASURES["sqnr"](probe(graph, images))
    np.testing.assert_allclose(sensitivity.weights, build_table(graph, measure), rtol=1e-4)
    assert sensitivity.forward_passes == 0


def test_kl_is_the_divergence_with_one_group_rounded(graph: NetworkGraph, images: Tensor) -> None:
    expected = log_softmax(fold_in_float64()(images.double()), dim=1)
    measured = []
    for group in graph.groups:
        row = []
        for width in WIDTHS:
            module = fold_in_float64()
            for layer in group.layers:
                weight = module.get_submodule(layer).weight.detach()
                weight.copy_(round_weight(weight, width))
            found = log_softmax(module(images.double()), dim=1)
            row.append((expected.exp() * (expected - found)).sum().item() / len(images))
        measured.append(row)
    sensitivity = MEASURES["kl"](probe(graph, images, batch_size=5))
    np.testing.assert_allclose(sensitivity.weights, measured, rtol=1e-3, atol=1e-7)


def compute_exact_fisher(images: Tensor) -> dict[str, Tensor]:
    """Compute E[g²] of every layer over images and all labels, weighed by their probability."""
    squares: dict[str, Tensor] = {}
    for image in images.double():
        for label in range(7):
            module = fold_in_float64()
            logs = log_softmax(module(image[None]), dim=1)[0]
            logs[label].backward()
            for name, part in module.named_modules():
                if isinstance(part, nn.Conv2d | nn.Linear):
                    share = part.weight.grad.square() * logs[label].exp().detach() / len(images)
                    squares[name] = squares.get(name, 0) + share
    return squares


@pytest.mark.parametrize("metric", ["fisher", "hessian"])
def test_second_order_metrics_estimate_their_definition(
    metric: str, graph: NetworkGraph, images: Tensor
) -> None:
    squares, module = compute_exact_fisher(images), fold_in_float64()

    def measure(layer: str, width: int) -> float:
        weight = module.get_submodule(layer).weight.detach()
        errors = (weight - round_weight(weight, width)).square()
        if metric == "hessian":
            return 0.5 * float(squares[layer].mean() * errors.sum())
        return 0.5 * float((squares[layer] * errors).sum())

    drawn = [
        MEASURES[metric](probe(graph, images, seed=seed)).weights for seed in range(40)
    ]  # forty draws of the labels: their mean approaches the expectation
    np.testing.assert_allclose(np.mean(drawn, axis=0), build_table(graph, measure), rtol=0.25)
    spread = np.std(drawn, axis=0) / np.sqrt(len(drawn))
    assert (
        np.abs(np.mean(drawn, axis=0) - build_table(graph, measure)) < 4.5 * spread + 1e-9
    ).all()


def test_given_labels_make_the_empirical_fisher(graph: NetworkGraph, images: Tensor) -> None:
    labels = torch.arange(12) % 7
    module = fold_in_float64()
    squares: dict[str, Tensor] = {}
    for image, label in zip(images.double(), labels, strict=True):
        module.zero_grad()
        log_softmax(module(image[None]), dim=1)[0, label].backward()
        for name, part in module.named_modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                squares[name] = squares.get(name, 0) + part.weight.grad.square() / len(images)

    def measure(layer: str, width: int) -> float:
        weight = module.get_submodule(layer).weight.detach()
        return 0.5 * float((squares[layer] * (weight - round_weight(weight, width)).square()).sum())

    sensitivity = MEASURES["fisher"](probe(graph, images, labels=labels))
    np.testing.assert_allclose(sensitivity.weights, build_table(graph, measure), rtol=1e-3)


@pytest.mark.parametrize("metric", list(MEASURES))
def test_sensitivity_to_activations_is_measured_and_shared(
    metric: str, graph: NetworkGraph, images: Tensor
) -> None:
    probed = probe(graph, images, act_widths=ACT_WIDTHS)
    sensitivity = MEASURES[metric](probed).activations
    names = [group.name for group in graph.groups]
    assert sensitivity.shape == (len(names), 2)
    stem, left = names.index("stem"), next(i for i, n in enumerate(names) if n in "left right")
    assert (sensitivity[stem] == 0).all(), "the images keep 8 bits"
    assert (sensitivity[left] > 0).all()
    others = np.delete(sensitivity, stem, axis=0)
    assert (others[:, 0] > others[:, 1]).all(), "3 bits cost more than 8"


def test_sensitivity_to_activations_by_sqnr_and_fisher(graph: NetworkGraph, images: Tensor) -> None:
    """On what the last layer reads, which nothing else reads."""
    values: list[Tensor] = []
    module = fold_in_float64()
    module.last.register_forward_pre_hook(lambda _m, x: values.append(x[0]))
    labels = torch.arange(12) % 7
    logits = module(images.double())
    values[0].retain_grad()
    log_softmax(logits, dim=1)[range(12), labels].sum().backward()
    probed = probe(graph, images, act_widths=ACT_WIDTHS, labels=labels)
    row = [group.name for group in graph.groups].index("last")
    (site,) = [name for name, groups in probed.sites.items() if groups == (row,)]
    relative, fisher = [], []
    for quantizer in probed.fitted[site]:
        error = (values[0].detach() - quantizer(values[0].detach().float()).double()).square()
        relative.append(float(error.sum() / values[0].detach().square().sum()))
        fisher.append(0.5 * float((values[0].grad.square() * error).sum()) / 12)
    found = MEASURES["sqnr"](probed).activations[row]
    np.testing.assert_allclose(found, relative, rtol=1e-3)
    np.testing.assert_allclose(MEASURES["fisher"](probed).activations[row], fisher, rtol=1e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_leaves_the_network_as_it_was_and_repeats_itself(
    metric: str, images: Tensor
) -> None:
    graph = trace(load_network("small_resnet").module, (3, 16, 16))
    pictures = torch.randn(8, 3, 16, 16)
    before = copy.deepcopy(graph.module.state_dict())

    def sensitivity() -> np.ndarray:
        shards = [Shard(pictures, 8)]
        evaluator = SensitivityEvaluator(Problem.build(graph, ASKED), shards, seed=3)
        found = evaluator.sensitivity(metric, beta=1.0)
        if metric != "orm":
            again = MEASURES.get(metric, sqnr.measure)(evaluator.probed)
            np.testing.assert_array_equal(found.weights, again.weights)
        return np.concatenate([found.weights, found.activations], axis=1)

    np.testing.assert_array_equal(sensitivity(), sensitivity())
    assert all(
        torch.equal(before[name], value) for name, value in graph.module.state_dict().items()
    )


def test_wider_is_cheaper_and_the_work_is_bounded() -> None:
    torch.manual_seed(0)
    graph = trace(load_network("resnet18", num_classes=10).module, (3, 32, 32))
    probed = ProbedNetwork.of(
        graph, graph.groups, torch.randn(64, 3, 32, 32), widths=(2, 3, 4, 6, 8)
    )
    sensitivity = MEASURES["kl"](probed)
    assert sensitivity.forward_passes <= 40
    assert (sensitivity.weights[:, 0] > sensitivity.weights[:, -1]).all()


def test_a_constant_layer_costs_nothing(images: Tensor) -> None:
    module = build_network()
    module.right.weight.data.zero_()
    graph = trace(module, (3, 8, 8))
    for metric in MEASURES:
        sensitivity = MEASURES[metric](probe(graph, images))
        assert np.isfinite(sensitivity.weights).all(), metric


def test_only_orthogonality_runs_as_several_processes(graph: NetworkGraph, images: Tensor) -> None:
    problem = Problem.build(graph, SearchSettings("PTQ", size_mb=1.0))
    evaluator = SensitivityEvaluator(problem, [Shard(images, 12)], ranks=Ranks(0, 2, 0))
    with pytest.raises(OmpqError, match="single"):
        evaluator.sensitivity("fisher", 1.0)
