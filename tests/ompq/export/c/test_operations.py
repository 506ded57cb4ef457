"""Operations between layers in C, against the integers that they must compute."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from compiled import COMPILER, Compiled, run_under_sanitizer
from converted import build
from kinds import conv, draw_images
from operating import LIBRARY, OPERATING, make
from support import lively
from torch import Tensor, nn

from ompq.export.c.operations import (
    Line,
    Table,
    find_factors,
    find_spread,
    read_line,
)
from ompq.export.c.program import (
    Buffer,
    Channels,
    Computation,
    Factor,
    Map,
    Region,
    Stage,
)
from ompq.export.c.source import CSource, write_c
from ompq.export.c.stages import add_stage
from ompq.integer import IntegerExecution, IntegerNetwork, export_integers

WATCHED = ("all", "prelu", "padded sigmoid", "rows and channels", "pieces")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler `cc`")


NARROW = "all;gate of maps;padded sigmoid;pieces;attention;bilinear;norm of channels".split(";")


def check(network: IntegerNetwork, images: Tensor, folder: Path) -> CSource:
    """Compare every logit of a network in C with its integers'."""
    assert network.runs_on_integers, network.float_operations
    source = write_c(network, images)
    expected = IntegerExecution(network, export_integers(network)).logits(images).flatten(1)
    assert expected.unique().numel() > expected.shape[1]
    assert torch.equal(Compiled(source, folder).run(), expected)
    return source


def convert(name: str, bits: int = 8, quantize_sums: bool = True) -> IntegerNetwork:
    torch.manual_seed(0)
    return build(OPERATING[name](), draw_images(8), bits, quantize_sums=quantize_sums)


def find_tables(source: CSource) -> list[tuple[str, int]]:
    """Find the types and sizes of the tables of entries."""
    found = re.findall(r"static const (\w+)_t \w*entries_\w+\[(\d+)\]", source.source)
    return [(kind.removeprefix("u"), int(size)) for kind, size in found]


@needs_compiler
@pytest.mark.parametrize("quantize_sums", [False, True])
@pytest.mark.parametrize("name", OPERATING)
def test_logits_of_operations(name: str, quantize_sums: bool, tmp_path: Path) -> None:
    check(convert(name, quantize_sums=quantize_sums), draw_images(8), tmp_path)


@needs_compiler
@pytest.mark.parametrize(
    "name",
    [
        "all",
        "gate of maps",
        "padded sigmoid",
        "pieces",
        "attention",
        "bilinear",
        "norm of channels",
    ],
)
def test_logits_of_narrow_activations(name: str, tmp_path: Path) -> None:
    check(convert(name, 4), draw_images(8), tmp_path)


@needs_compiler
@pytest.mark.parametrize("name", [*WATCHED, "attention", "norm of groups", "softmax of channels"])
def test_no_operation_reads_what_is_not_there(name: str, tmp_path: Path) -> None:
    run_under_sanitizer(write_c(convert(name), draw_images(2)), tmp_path)


@needs_compiler
@pytest.mark.parametrize("name", ["hard-swish", "one slope"])
def test_tables_that_are_requantized_hold_bytes(name: str, tmp_path: Path) -> None:
    assert find_tables(check(convert(name), draw_images(8), tmp_path)) == [("int8", 256)]


@needs_compiler
def test_what_all_channels_have_in_a_table_is_written_once(tmp_path: Path) -> None:
    source = check(convert("prelu"), draw_images(8), tmp_path)
    (_, common), (_, own) = find_tables(source)
    assert common == 256
    # Slopes differ for what is negative.
    assert own % 8 == 0
    assert own <= 8 * 128


@needs_compiler
def test_equal_tables_are_written_once(tmp_path: Path) -> None:
    def body(net: nn.Module, x: Tensor) -> Tensor:
        return net.a(torch.sigmoid(x)) + net.b(torch.sigmoid(x))

    torch.manual_seed(0)
    network = build(make(body, a=conv(8, 8), b=conv(8, 8)), draw_images(8))
    assert len(network.operations()) == 2
    assert len(find_tables(check(network, draw_images(8), tmp_path))) == 1


@needs_compiler
def test_exponentials_are_written_once_in_two_bytes(tmp_path: Path) -> None:
    source = check(convert("attention"), draw_images(8), tmp_path)
    found = re.findall(r"static const (\w+)_t exponentials_\w+\[(\d+)\]", source.source)
    assert found == [("uint16", "1535")]


@needs_compiler
def test_gates_are_not_spread_in_memory(tmp_path: Path) -> None:
    source = check(convert("gate"), draw_images(8), tmp_path)
    # Maps before and behind the product, the gate, and what steps work in.
    assert source.ram_bytes < 2 * 8 * 8 * 8 + 2 * 4 * 64 + 3 * 72 + 128


def begin(results: tuple[int, ...], bounds: tuple[int, int]) -> Computation:
    return Computation(Map(), Region(Buffer(8, bounds)), results, bounds, "", 0)


def extend(computation: Computation, *stages: Stage | Table | Line) -> Computation:
    for stage in stages:
        extended = add_stage(computation, stage, None)
        assert extended is not None
        computation = extended
    return computation


def rescale(multiplier: int, shift: int, low: int = -8, high: int = 7) -> Stage:
    factor = Factor(torch.tensor([multiplier]), torch.tensor([shift]))
    return Stage(factor, torch.tensor([low]), torch.tensor([high]))


def test_what_is_done_to_looked_up_values_is_done_to_the_table() -> None:
    table = Table(torch.arange(-40, 40, 5)[None] ** 2, -8)
    line = Line(torch.tensor([3]), torch.tensor([-100]))
    stages = [table, rescale(3, 9), table, line, rescale(5, 4, -100, 100)]
    computation = extend(begin((8,), (-8, 7)), *stages)
    (folded,) = computation.stages
    assert isinstance(folded, Table)
    x = torch.arange(-8, 8)[:, None]
    expected = x
    for stage in stages:
        expected = stage.apply(expected)
    assert torch.equal(folded.apply(x), expected)
    assert computation.bounds[0] <= int(expected.min()) <= int(expected.max())
    assert int(expected.max()) <= computation.bounds[1]


def test_one_table_does_not_become_one_per_channel() -> None:
    table = Table(torch.arange(16)[None], 0)
    begun = extend(begin((2, 4), (0, 7)), table)
    line = Line(torch.tensor([1, 2]), torch.tensor([0]))
    extended = add_stage(begun, line, Channels(2, 4))
    assert extended is not None
    assert len(extended.stages) == 2


def test_numbers_along_several_dimensions_are_spread_along_those_between() -> None:
    multiplier, offset = torch.tensor([[[5]], [[6]]]), torch.arange(3)[:, None]
    line, channels = read_line(multiplier, offset, (1, 2, 3, 4))
    assert channels == Channels(6, 4)
    assert line.multiplier.tolist() == [5, 5, 5, 6, 6, 6]
    assert line.offset.tolist() == [0, 1, 2, 0, 1, 2]


def test_factors_of_products_are_found_by_trying() -> None:
    class Outer(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a[:, :, None] * b[:, None, :]

    class Lower(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a * b).tril()

    found = find_factors(torch.fx.symbolic_trace(Outer()), [(1, 2), (1, 3)])
    assert found is not None
    assert found[0].tolist() == [[[0, 0, 0], [1, 1, 1]]]
    assert found[1].tolist() == [[[0, 1, 2], [0, 1, 2]]]
    assert find_factors(torch.fx.symbolic_trace(Lower()), [(1, 3, 3), (1, 3, 3)]) is None
    assert find_spread(found[0], 2) == Channels(2, 3)
    assert find_spread(found[1], 3) == Channels(3, 1)
    assert find_spread(found[1].flip(2), 3) is None


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARY)
def test_networks_of_torchvision(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    network = lively(LIBRARY[name]()).train()
    with torch.no_grad():
        network(images)
    source = check(build(network.eval(), images), images, tmp_path)
    weights = sum(p.numel() for p in network.parameters() if p.dim() > 1)
    assert source.flash_bytes < 1.7 * weights
