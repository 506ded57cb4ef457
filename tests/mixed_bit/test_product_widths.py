"""A search chooses the widths that products of matrices read as it does those of layers."""

from __future__ import annotations

import torch
from kinds import draw_images
from operating import OPERATING

from mixed_bit import SearchSettings, search
from ompq.graph import fold_batch_norm, trace
from ompq.integer import ConversionSettings, convert_to_integers
from ompq.integer.products import IntegerProduct


def test_a_search_chooses_the_width_of_products() -> None:
    torch.manual_seed(0)
    graph = trace(OPERATING["attention"](), (3, 16, 16))
    heads = [group for group in graph.groups if group.products]
    assert [group.name for group in heads] == ["a.out", "b.out"]
    # What the products take at 8 bits is more than the whole budget.
    limit = 0.8 * 64 * sum(group.product_ops for group in heads) / 1e9
    asked = SearchSettings(
        "PTQ", bops_g=limit, candidate_bits=(2, 8), candidate_act_bits=(2, 8), metric="sqnr"
    )
    result = search(graph, draw_images(8), asked)
    assignment = result.assignment
    assert assignment.bops_g <= limit
    acts = dict(zip([group.name for group in graph.groups], assignment.activations, strict=True))
    assert {acts["a.out"], acts["b.out"]} == {2} or acts["a.out"] != acts["b.out"]
    # What a product reads is among the values whose errors are measured.
    table = result.sensitivity.activations
    listed = [group.name for group in result.problem.listed]
    place = listed.index("a.out")
    assert table[place, 0] > table[place, -1]
    widths = assignment.layer_bits(), assignment.layer_act_bits()
    converted = convert_to_integers(fold_batch_norm(graph), *widths, ConversionSettings())
    for group in heads:
        for product in group.products:
            operation = converted.operations()[f"operations.{product}"]
            assert isinstance(operation, IntegerProduct)
            read = [source.module.bits for source in operation.scale_sources]
            of_probabilities = product in ("matmul_1", "matmul_3")
            assert read == [8 if of_probabilities else acts[group.name], acts[group.name]]
