"""Test vectors: images as integers and their sums, by which a device proves what it computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ompq.export.c.constants import write_numbers
from ompq.export.c.program import C_TYPES, Program
from ompq.graph.operations import image_layout
from ompq.integer.execution import IntegerExecution, export_integers
from ompq.integer.network import IntegerNetwork


def write_vectors(network: IntegerNetwork, program: Program, images: Tensor, name: str) -> str:
    """Write images and their sums as C arrays.

    Args:
        network: Network of integers.
        program: The same as steps.
        images: Images, n × channels × height × width, normalised.
        name: What names begin with.
    """
    execution = _Recording(network)
    execution.logits(images)
    arrays = []
    for given in program.inputs:
        pixels = execution.values[given.node] if given.normalised else images
        whole = torch.round(pixels.double() / given.scale).clamp(*given.bounds).long()
        kind = C_TYPES[given.buffer.type]
        array = _write_array(f"{name}_test_{given.buffer.pointer}", kind, whole - given.buffer.low)
        arrays.append(array)
    arrays.append(_write_array(f"{name}_test_sums", "int32_t", execution.values[execution.last]))
    prefix = name.upper()
    return (
        f"/* Images as {name}_run() takes them, and the sums that it must give. */\n"
        f"#ifndef {prefix}_TEST_VECTORS_H\n#define {prefix}_TEST_VECTORS_H\n\n"
        f"#include <stdint.h>\n\n#define {prefix}_TESTS {len(images)}\n\n"
        f"{''.join(arrays)}\n#endif\n"
    )


class _Recording(IntegerExecution):
    """Runs integers and keeps what the images became in float, and what becomes logits.

    Attributes:
        last: Node whose integers become logits.
        values: Node → its value for all images, which lie along dimension 0.
    """

    def __init__(self, network: IntegerNetwork) -> None:
        super().__init__(network, export_integers(network))
        output = next(node for node in network.module.graph.nodes if node.op == "output")
        self.last = output.all_input_nodes[0]
        self.values: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        """Keep a value."""
        value = super().run_node(n)
        if n is self.last or n.name in self.network.image_maps:
            layout = image_layout(n)
            self.values[n] = value if layout is None else layout.split(value)
        return value


def _write_array(name: str, kind: str, values: Tensor) -> str:
    """Write one row of integers per image."""
    rows = values.flatten(1).tolist()
    body = ",\n".join(f"    {{\n{write_numbers(row, 8)}\n    }}" for row in rows)
    return f"static const {kind} {name}[{len(rows)}][{len(rows[0])}] = {{\n{body}\n}};\n"
