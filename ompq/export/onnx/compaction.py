"""A model without what only readers of its graph need: long names, and attributes by default."""

from __future__ import annotations

import onnx
from onnx import NodeProto, helper

# Letters and digits that short names are made of.
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
# What an attribute of a convolution is where it is left out.
_DEFAULTS = {"dilations": 1, "strides": 1, "pads": 0, "group": 1}


def compact_model(model: onnx.ModelProto) -> None:
    """Give all values of a model the shortest names, in place; inputs and outputs keep theirs.

    In a file of a few hundred kilobytes, names are a tenth.

    Args:
        model: Model without subgraphs.
    """
    graph = model.graph
    kept = ["", *(value.name for value in [*graph.input, *graph.output])]
    names = {name: name for name in kept}
    del graph.value_info[:]
    for constant in graph.initializer:
        constant.name = names.setdefault(constant.name, _write_number(len(names)))
    for node in graph.node:
        node.name = ""
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names.setdefault(name, _write_number(len(names))) for name in node.output]
        if node.op_type == "Conv":
            _drop_defaults(node)


def _drop_defaults(node: NodeProto) -> None:
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    needless = {
        name
        for name, value in given.items()
        if name == "kernel_shape"  # it is that of the weight
        or set(value if isinstance(value, list) else [value]) == {_DEFAULTS.get(name)}
    }
    needed = [each for each in node.attribute if each.name not in needless]
    del node.attribute[:]
    node.attribute.extend(needed)


def _write_number(number: int) -> str:
    """Write a number in letters and digits, the first of them a letter.

    >>> [_write_number(number) for number in (0, 25, 26, 962)]
    ['a', 'z', 'a0', 'a00']
    """
    letters, size = "", len(_DIGITS)
    first = len(_DIGITS) - 10
    length, count = 0, first
    while number >= count:
        number, length, count = number - count, length + 1, count * size
    for _ in range(length):
        number, digit = divmod(number, size)
        letters = _DIGITS[digit] + letters
    return _DIGITS[10 + number] + letters
