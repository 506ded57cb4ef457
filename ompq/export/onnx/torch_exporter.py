"""What nobody else can write, written by PyTorch's own exporter to ONNX, where it is installed."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import re
import warnings
from typing import Any

import onnx
import onnx.inliner
import torch
from onnx import AttributeProto, helper, numpy_helper

from ompq.export.onnx.builder import OPSET, GraphBuilder
from ompq.export.onnx.inside import Opened, Untraceable, read_layout
from ompq.export.onnx.operands import NoForm

_LONGEST_REASON = 160
# The exporter writes for terminals.
_COLOURS = re.compile("\x1b\\[[0-9;]*m")


def export_by_torch(
    builder: GraphBuilder, opened: Opened, inputs: list[str], reason: NoForm
) -> str | list[str]:
    """Add what a node does to a graph, as PyTorch's exporter writes it.

    Args:
        builder: Graph to add to.
        opened: The node as a module of its own.
        inputs: Names of what it takes.
        reason: Why the node was not written otherwise; it is raised where this fails too.

    Returns:
        The name of the value, or the names of several.
    """
    if importlib.util.find_spec("onnxscript") is None:
        hint = "; PyTorch's exporter may have one: install onnxscript"
        raise NoForm(f"{reason}{hint}") from reason
    try:
        model = _export(opened)
    # The exporter's errors are of many classes, which other versions name otherwise.
    except Exception as error:
        raise NoForm(f"{reason}; PyTorch's exporter fails too: {_find_reason(error)}") from error
    return _insert(builder, model, inputs, reason)


def _find_reason(error: BaseException) -> str:
    """Return the first line of what an error came of, rather than what the exporter advises.

    >>> _find_reason(ValueError("The following problems were found:\\n\\n- one\\n- another"))
    'The following problems were found: one'
    """
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip(" -*") for line in _COLOURS.sub("", str(error)).splitlines()]
    lines = list(filter(None, lines)) or [type(error).__name__]
    # What ends so only announces the next line.
    told = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return told[:_LONGEST_REASON]


def _export(opened: Opened) -> onnx.ModelProto:
    """Export a module for any number of images, from two of them."""
    _, of_two = opened.draw()
    images = torch.export.Dim("images", min=1)
    shapes: list[dict[int, Any]] = []
    for node in opened.inputs:
        layout = read_layout(node)
        shapes.append({layout.dim: layout.rows * images if layout.rows > 1 else images})
    # It tells its progress, and logs what it tries.
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                opened.module,
                (of_two,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=(shapes,),
                verbose=False,
            )
    finally:
        logging.disable(logging.NOTSET)
    if program is None:
        raise Untraceable("it gives nothing")
    return onnx.inliner.inline_local_functions(program.model_proto)


def _insert(
    builder: GraphBuilder, model: onnx.ModelProto, inputs: list[str], reason: NoForm
) -> str | list[str]:
    """Insert the nodes of a model, under names that are free."""
    graph = model.graph
    given = [value.name for value in graph.input]
    names = {"": "", **dict(zip(given, inputs, strict=True))}
    for tensor in graph.initializer:
        names[tensor.name] = builder.constant(numpy_helper.to_array(tensor))
    for node in graph.node:
        kinds = {attribute.type for attribute in node.attribute}
        if node.domain not in ("", "ai.onnx") or AttributeProto.GRAPH in kinds:
            raise NoForm(f"{reason}; PyTorch's exporter makes a {node.op_type} of it") from reason
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        outputs = builder.add_many(
            node.op_type,
            [names[each] for each in node.input],
            len(node.output),
            **attributes,
        )
        names |= dict(zip(node.output, outputs, strict=True))
    results = [names[value.name] for value in graph.output]
    return results[0] if len(results) == 1 else results
