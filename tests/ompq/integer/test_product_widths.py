"""Products of matrices read the activation width of the layer that they lead to."""

from __future__ import annotations

import pytest
import torch
from converted import build, count_equal
from kinds import draw_images
from operating import OPERATING

from ompq.graph import NetworkGraph, fold_batch_norm, trace
from ompq.integer import (
    IntegerNetwork,
    convert_to_integers,
    convert_to_tensors,
    restore_from_tensors,
)
from ompq.integer.network import ConversionSettings
from ompq.integer.products import IntegerProduct

IMAGES = draw_images(8)


def trace_of(name: str) -> NetworkGraph:
    torch.manual_seed(0)
    return trace(OPERATING[name](), (3, 16, 16))


def find_widths(network: IntegerNetwork) -> dict[str, list[int]]:
    """Find the widths that the two values of every product are read at."""
    return {
        path: [source.module.bits for source in operation.scale_sources]
        for path, operation in network.operations().items()
        if isinstance(operation, IntegerProduct)
    }


@pytest.mark.parametrize("name", ["attention", "attention by einsum"])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_products_of_matrices_read_the_activation_width(name: str, bits: int) -> None:
    converted = build(trace_of(name), IMAGES, bits)
    found = find_widths(converted)
    assert len(found) == 4
    # Queries and keys; probabilities, which keep 8 bits, and values.
    assert list(found.values()) == 2 * [[bits, bits], [8, bits]]
    assert count_equal(converted, IMAGES) == len(IMAGES)


def test_a_converted_network_runs_with_gradients_and_without() -> None:
    torch.manual_seed(0)
    converted = build(OPERATING["class token"](), IMAGES)
    with torch.inference_mode():
        expected = converted.module(IMAGES)
    assert torch.equal(converted.module(IMAGES), expected)


def test_products_of_elements_read_8_bits() -> None:
    (widths,) = find_widths(build(trace_of("gate"), IMAGES, 4)).values()
    assert widths == [8, 8]


def test_products_of_earlier_files_read_8_bits() -> None:
    graph = fold_batch_norm(trace_of("attention"))
    weights, reads = dict.fromkeys(graph.layers, 4), dict.fromkeys(graph.layers, 4)
    network = convert_to_integers(graph, weights, reads, ConversionSettings())
    assert all(widths == [8, 8] for widths in find_widths(network).values())
    tensors, description = convert_to_tensors(build(trace_of("attention"), IMAGES, 4))
    for path, entry in description["activations"].items():
        if path.startswith("values."):
            entry |= {"bits": 8, "low": -128, "high": 127}
    del description["product_reads"], description["merged"]
    restored = restore_from_tensors(graph, description, tensors)
    assert all(widths == [8, 8] for widths in find_widths(restored).values())
