"""ONNX Runtime computes operations between layers on integers, every logit to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from converted import build, count_equal
from kinds import conv, draw_images
from operating import LIBRARY, OPERATING, make
from support import lively
from torch import Tensor, nn

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from ompq.export.onnx.integer import build_integer_model  # noqa: E402
from ompq.integer import IntegerExecution, IntegerNetwork, export_integers  # noqa: E402

NARROW = "all;gate of maps;padded sigmoid;pieces;attention;bilinear;norm of channels".split(";")


def check(network: IntegerNetwork, images: Tensor) -> onnx.ModelProto:
    """Compare the logits of one image, of three and of all with those of the integers."""
    assert network.runs_on_integers, network.float_operations
    model = build_integer_model(network)
    session = runtime.InferenceSession(model.SerializeToString())
    execution = IntegerExecution(network, export_integers(network))
    for count in (1, 3, len(images)):
        expected = execution.logits(images[:count]).numpy()
        (found,) = session.run(["logits"], {"images": images[:count].numpy()})
        assert np.array_equal(found, expected)
    assert len(np.unique(expected)) > expected.shape[1]
    return model


def convert(name: str, bits: int = 8, quantize_sums: bool = True) -> IntegerNetwork:
    torch.manual_seed(0)
    return build(OPERATING[name](), draw_images(8), bits, quantize_sums=quantize_sums)


@pytest.mark.parametrize("quantize_sums", [False, True])
@pytest.mark.parametrize("name", OPERATING)
def test_logits_of_operations(name: str, quantize_sums: bool) -> None:
    network = convert(name, quantize_sums=quantize_sums)
    check(network, draw_images(8))
    # What is written down is what was simulated.
    assert count_equal(network, draw_images(8)) == 8


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
def test_logits_of_narrow_activations(name: str) -> None:
    check(convert(name, 4), draw_images(8))


def find_tables(model: onnx.ModelProto) -> list[tuple[int, int]]:
    """Find the types and sizes of the tables of a model."""
    held = {each.name: each for each in model.graph.initializer}
    names = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    return [(held[name].data_type, held[name].dims[0]) for name in sorted(names & held.keys())]


@pytest.mark.parametrize(("name", "channels"), [("hard-swish", 1), ("prelu", 8), ("one slope", 1)])
def test_tables_that_are_requantized_hold_bytes(name: str, channels: int) -> None:
    tables = find_tables(check(convert(name), draw_images(8)))
    assert tables == [(onnx.TensorProto.UINT8, 256 * channels)]


def test_tables_that_others_read_hold_sixteen_bits() -> None:
    tables = find_tables(check(convert("silu twice", quantize_sums=False), draw_images(8)))
    assert tables == [(onnx.TensorProto.INT16, 256)]


def test_equal_tables_are_held_once() -> None:
    def body(net: nn.Module, x: Tensor) -> Tensor:
        return net.a(torch.sigmoid(x)) + net.b(torch.sigmoid(x))

    torch.manual_seed(0)
    network = build(make(body, a=conv(8, 8), b=conv(8, 8)), draw_images(8))
    assert len(network.operations()) == 2
    assert len(find_tables(check(network, draw_images(8)))) == 1


def test_exponentials_are_held_once() -> None:
    tables = find_tables(check(convert("attention"), draw_images(8)))
    assert tables == [(onnx.TensorProto.INT32, 1536)]


def test_large_numbers_are_held_in_four_bytes() -> None:
    model = check(convert("positions"), draw_images(8))
    large = [each for each in model.graph.initializer if np.prod(each.dims) == 512]
    assert {each.data_type for each in large} <= {onnx.TensorProto.INT32}


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARY)
def test_networks_of_torchvision(name: str) -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 3, 32, 32)
    network = lively(LIBRARY[name]()).train()
    with torch.no_grad():
        network(images)
    check(build(network.eval(), images), images)
