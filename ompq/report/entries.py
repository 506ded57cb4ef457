"""What a result file tells of the groups of a network, for reports to show."""

from __future__ import annotations

from typing import Any

from ompq.assignment import Assignment
from ompq.graph import Group, NetworkGraph


def describe_groups(graph: NetworkGraph, assignment: Assignment) -> list[dict[str, Any]]:
    """Describe every group with its widths, as JSON values.

    Args:
        graph: The network.
        assignment: Widths of its groups.
    """
    rows = zip(
        assignment.groups,
        assignment.widths,
        assignment.activations,
        assignment.listed,
        strict=True,
    )
    return [
        {
            "layers": list(group.layers),
            "bits": bits,
            "act_bits": act_bits,
            "params": group.params,
            "ops": group.ops,
            "shapes": list_shapes(graph, group),
            "in_list": listed,
        }
        for group, bits, act_bits, listed in rows
    ]


def list_shapes(graph: NetworkGraph, group: Group) -> list[list[int]]:
    """Return the shape of the weight of every layer of a group."""
    return [list(graph.layers[layer].weight_shape) for layer in group.layers]
