"""What the clips and averages of a traced network do, whichever way they are written."""

from __future__ import annotations

from math import inf
from typing import Any

from torch.fx import GraphModule, Node

from ompq.graph.operations import operation, tensor_shape

CLIPS = frozenset("relu relu6 hardtanh clamp clip clamp_min clamp_max".split())
AVERAGES = frozenset("avgpool2d avg_pool2d adaptiveavgpool2d adaptive_avg_pool2d mean".split())


def clip_bounds(node: Node, module: GraphModule) -> tuple[float, float]:
    """Least and largest value that a clipping activation lets pass."""
    name = operation(node, module)
    if name == "relu":
        return 0.0, inf
    if name == "relu6":
        return 0.0, 6.0
    if node.op == "call_module":
        found = module.get_submodule(str(node.target))
        return float(found.min_val), float(found.max_val)  # type: ignore[arg-type]
    given = dict(zip(("min", "max"), node.args[1:], strict=False)) | dict(node.kwargs)
    if name == "hardtanh":
        given = {"min": given.get("min_val", given.get("min", -1.0)), **given}
        given = {"max": given.get("max_val", given.get("max", 1.0)), **given}
    if name == "clamp_max":
        given = {"max": given.get("max", given.get("min"))}
    low, high = given.get("min"), given.get("max")
    return (-inf if low is None else float(low)), (inf if high is None else float(high))  # type: ignore[arg-type]


def pooling_window(
    node: Node, module: GraphModule
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None:
    """Kernel, stride and padding of an average over height and width.

    None where not every output divides by the size of the kernel, or other dimensions are averaged.
    """
    before, after = tensor_shape(node.all_input_nodes[0]), tensor_shape(node)
    if before is None or after is None or len(before) != 4 or before[:2] != after[:2]:
        return None
    name = operation(node, module)
    if name == "mean" or name.startswith("adaptive"):
        rows, columns = after[2:] if len(after) == 4 else (1, 1)
        if before[2] % rows or before[3] % columns:
            return None
        kernel = before[2] // rows, before[3] // columns
        return kernel, kernel, (0, 0)
    return _given_window(node, module)


def _given_window(
    node: Node, module: GraphModule
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
    if node.op == "call_module":
        pool = module.get_submodule(str(node.target))
        values = {key: getattr(pool, key) for key in (*names, "divisor_override")}
    else:
        values = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    kernel = _pair(values["kernel_size"])
    stride = _pair(values.get("stride") or kernel)
    padding = _pair(values.get("padding", 0))
    if values.get("ceil_mode") or values.get("divisor_override"):
        return None
    if padding != (0, 0) and not values.get("count_include_pad", True):
        return None
    return kernel, stride, padding


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, *rest = value
    return int(first), int(rest[0] if rest else first)
