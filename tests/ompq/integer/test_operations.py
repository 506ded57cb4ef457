"""Operations between layers on integers, each beside its formula in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Tracer

from ompq.integer.fake_quantizers import ActivationFakeQuantizer, RangeRule
from ompq.integer.normalisation import IntegerNorm, find_norm
from ompq.integer.pointwise import IntegerAffine, LookupTable, Nature, find_nature
from ompq.integer.products import IntegerProduct, count_products
from ompq.integer.requantization import Requantizer, ScaleSource
from ompq.integer.softmax import IntegerSoftmax, find_softmax
from ompq.quantizers import QuantParams

EXAMPLES = settings(max_examples=25, deadline=None)
SHAPE = (1, 12, 6, 5)


class _WholeTracer(Tracer):
    """A tracer that calls every module as a whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def whole(module: nn.Module) -> GraphModule:
    """Make a network that calls one module."""
    root = nn.Sequential(module).eval()
    return GraphModule(root, _WholeTracer().trace(root))


def of(function: Callable[..., Tensor], count: int = 1) -> GraphModule:
    """Make a network that calls a function of some values."""
    graph = Graph()
    values = [graph.placeholder(f"value_{number}") for number in range(count)]
    graph.output(graph.call_function(function, tuple(values)))
    return GraphModule(nn.Module(), graph)


def source(scale: float, bits: int = 8, zero_point: int = 0) -> ScaleSource:
    """Make the source of a scale: a requantizer of so many bits, symmetric but for its zero."""
    requantizer = Requantizer(ActivationFakeQuantizer(bits, RangeRule()), dyadic=True)
    reach = 2 ** (bits - 1)
    params = QuantParams(torch.tensor(scale), torch.tensor(zero_point).int(), -reach, reach - 1)
    requantizer.fake_quantizer.set(params)
    return ScaleSource(requantizer)


def draw(shape: tuple[int, ...], reach: int, seed: int = 0) -> Tensor:
    return torch.randint(-reach, reach, shape, generator=torch.Generator().manual_seed(seed))


POINTWISE = {
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu by tanh": nn.GELU("tanh"),
    "hardswish": nn.Hardswish(),
    "sigmoid": nn.Sigmoid(),
    "a slope per channel": nn.PReLU(12),
    "softplus": nn.Softplus(),
}


@pytest.mark.parametrize("name", POINTWISE)
@EXAMPLES
@given(scale=st.floats(1e-4, 1.0), zero_point=st.integers(-128, 127))
def test_a_table_holds_the_function_of_every_level(
    name: str, scale: float, zero_point: int
) -> None:
    module = POINTWISE[name]
    nature = find_nature(whole(module), SHAPE, 0)
    assert nature is not None and not nature.is_affine
    given = source(scale, zero_point=zero_point)
    operation = LookupTable(whole(module), given, nature).eval()
    low, high = given.module.reach  # type: ignore[attr-defined]
    levels = torch.arange(low, high + 1)
    x = levels[torch.randint(0, len(levels), SHAPE, generator=torch.Generator().manual_seed(0))]
    numbers = operation.compute_numbers()
    found = operation.compute(numbers, x) * numbers["scale"]
    expected = module.double()(x * given.get_scale())
    # Half a step of 16 bits.
    assert (found - expected).abs().max() <= 0.501 * numbers["scale"]
    assert operation.compute(numbers, x).abs().max() < 2**15
    torch.testing.assert_close(operation(x * given.get_scale()), found)


@pytest.mark.parametrize("function", [torch.log, torch.rsqrt, torch.reciprocal])
def test_a_function_that_gives_no_number_for_zero_has_no_table(
    function: Callable[[Tensor], Tensor],
) -> None:
    assert find_nature(of(function), SHAPE, 0) is None


def test_where_a_function_gives_no_number_the_nearest_that_it_gives_counts() -> None:
    function = of(torch.log1p)
    nature = find_nature(function, SHAPE, 0)
    assert nature is not None
    operation = LookupTable(function, source(0.1), nature).eval()
    numbers = operation.compute_numbers()
    found = operation.compute(numbers, torch.arange(-128, 128)) * numbers["scale"]
    # Of -0.9, where the values that have a logarithm begin.
    expected = torch.log1p(torch.arange(-128, 128).clamp_min(-9).double() / 10)
    assert (found - expected).abs().max() <= 0.501 * numbers["scale"]


def test_a_function_that_gives_no_numbers_at_all_has_no_table() -> None:
    below_zero = source(0.1, zero_point=127)
    operation = LookupTable(of(torch.log), below_zero, Nature((1, 1, 1, 1), False))
    with pytest.raises(ArithmeticError):
        operation.eval().compute_numbers()


class Scaled(nn.Module):
    """Numbers of some shape that multiply, and others that are added."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.gain, self.offset = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply and add."""
        return x * self.gain + self.offset


LINES = {
    "batch norm": (nn.BatchNorm2d(12), (1, 12, 1, 1)),
    "last dimension": (Scaled((5,)), (1, 1, 1, 5)),
    "every place": (Scaled((1, 12, 6, 5)), (1, 12, 6, 5)),
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_is_found_whatever_its_numbers_are_now(name: str) -> None:
    module, shape = LINES[name]
    assert find_nature(whole(module), SHAPE, 0) == Nature(shape, is_affine=True)


@pytest.mark.parametrize("name", LINES)
@EXAMPLES
@given(scale=st.floats(1e-4, 1.0), spread=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
def test_a_line_on_integers_is_that_line(name: str, scale: float, spread: float, seed: int) -> None:
    module, shape = LINES[name]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    operation = IntegerAffine(whole(module), source(scale), Nature(shape, is_affine=True)).eval()
    x, numbers = draw(SHAPE, 127, seed), operation.compute_numbers()
    result = operation.compute(numbers, x)
    expected = module.double()(x * operation.scale_sources[0].get_scale())
    module.float()
    error = (result * numbers["scale"] - expected).abs().max()
    assert error <= 1e-6 * expected.abs().max() + 1e-12
    assert result.abs().max() < 2**30


PRODUCTS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...], int]] = {
    "gate": (torch.mul, (1, 4, 6, 6), (1, 4, 1, 1), 1),
    "matrices": (torch.matmul, (1, 2, 5, 7), (1, 2, 7, 3), 7),
    "turned": (lambda a, b: a @ b.transpose(-2, -1), (1, 2, 5, 7), (1, 2, 4, 7), 7),
    "notation": (lambda a, b: torch.einsum("bij,bkj->bik", a, b), (1, 5, 7), (1, 4, 7), 7),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_of_integers_is_exact(name: str) -> None:
    function, first, second, count = PRODUCTS[name]
    graph = of(function, 2)
    assert count_products(graph, [first, second]) == count
    operation = IntegerProduct(graph, [source(0.1), source(0.02)], count).eval()
    a, b = draw(first, 128), draw(second, 128, 1)
    found = operation.compute(operation.compute_numbers(), a, b)
    assert torch.equal(found, function(a, b))
    assert float(operation.get_scale()) == pytest.approx(0.002)
    assert int(found.abs().max()) < 2 ** (operation.bits - 1)


@pytest.mark.parametrize(
    "function",
    [torch.add, torch.div, torch.maximum, torch.atan2, lambda a, b: a * b * 0.5, lambda a, b: a],
)
def test_what_is_not_linear_in_both_is_no_product(function: Callable[..., Tensor]) -> None:
    assert count_products(of(function, 2), [(1, 6), (1, 6)]) is None


@EXAMPLES
@given(
    scale=st.floats(1e-6, 0.5),
    bits=st.integers(4, 31),
    dim=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_a_softmax_of_integers_is_near_that_of_their_values(
    scale: float, bits: int, dim: int, seed: int
) -> None:
    function = whole(nn.Softmax(dim))
    assert find_softmax(function, SHAPE, 0) == dim
    operation = IntegerSoftmax(function, source(scale, bits), dim).eval()
    # As far apart as exponentials go, and as the width allows.
    reach = min(2 ** (bits - 1) - 1, int(20 / scale))
    x = draw((3, *SHAPE[1:]), max(1, reach), seed)
    numbers = operation.compute_numbers()
    found = operation.compute(numbers, x) * numbers["scale"]
    expected = torch.softmax(x * operation.scale_sources[0].get_scale(), dim)
    # Steps of 1/128 of differences, to either side, and half a step of 15 bits.
    assert ((found - expected).abs() <= expected / 100 + 2**-15).all()
    assert (found.sum(dim) - 1).abs().max() < 12 * 2**-15


NORMS = {
    "layer norm": nn.LayerNorm(5),
    "over two dimensions": nn.LayerNorm((6, 5)),
    "root mean square": nn.RMSNorm(5, eps=1e-6),
    "instances": nn.InstanceNorm2d(12, affine=True),
    "groups": nn.GroupNorm(4, 12),
    "one group": nn.GroupNorm(1, 12),
}


@pytest.mark.parametrize("name", NORMS)
@EXAMPLES
@given(scale=st.floats(1e-4, 0.5), bits=st.integers(8, 24), seed=st.integers(0, 100))
def test_a_norm_of_integers_is_near_that_of_their_values(
    name: str, scale: float, bits: int, seed: int
) -> None:
    module = NORMS[name].float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
    norm = find_norm(whole(module), SHAPE, 0)
    assert norm is not None
    operation = IntegerNorm(whole(module), source(scale, bits), norm, SHAPE).eval()
    reach = 2 ** (bits - 1) - 1
    x, numbers = draw((3, *SHAPE[1:]), reach, seed), operation.compute_numbers()
    result = operation.compute(numbers, x)
    expected = module.double()(x * operation.scale_sources[0].get_scale())
    assert (result * numbers["scale"] - expected).abs().max() < 5e-3
    assert result.abs().max() < 2**30


def test_a_norm_of_many_values_and_of_equal_ones_stays_within_its_bits() -> None:
    module = nn.GroupNorm(1, 8)
    size = (1, 8, 96, 96)
    norm = find_norm(whole(module), size, 0)
    assert norm is not None
    operation = IntegerNorm(whole(module), source(0.01, 16), norm, size).eval()
    numbers = operation.compute_numbers()
    equal = torch.full(size, 2**15 - 1)
    assert int(operation.compute(numbers, equal).abs().max()) < 2**12
    apart = equal * torch.where(torch.arange(96) % 2 == 0, 1, -1)
    result = operation.compute(numbers, apart) * numbers["scale"]
    assert (result.abs() - 1).abs().max() < 0.02


@pytest.mark.parametrize(
    "module",
    [nn.LocalResponseNorm(2), nn.Softmax(1), nn.AvgPool2d(3, 1, 1), nn.CELU(), nn.Dropout(0.5)],
)
def test_what_is_no_norm_is_none(module: nn.Module) -> None:
    assert find_norm(whole(module), SHAPE, 0) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.roll(1, 2),
        lambda x: x.flip(3),
        lambda x: x.cumsum(1),
        lambda x: x - x.amax(1, keepdim=True),
        lambda x: F.avg_pool2d(x, 3, 1, 1),
        lambda x: F.softmax(x, 1),
    ],
)
def test_what_mixes_places_does_not_work_value_by_value(function: Callable[..., Tensor]) -> None:
    assert find_nature(of(function), SHAPE, 0) is None
