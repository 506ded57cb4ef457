"""Fields of settings that Python code gives: of their declared types, or refused by name."""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from ompq.errors import OmpqError

_WANTED = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list of whole numbers",
    Mapping: "a dictionary of names and whole numbers",
}


def settle_fields(settings: Any, besides: Collection[str] = ()) -> None:
    """Check the fields of a frozen dataclass by their annotations, and make them plain.

    NumPy's numbers become Python's, whole numbers become floats where floats are declared, and
    lists of numbers tuples.

    Args:
        settings: Dataclass whose fields are numbers, texts, booleans, tuples of whole numbers,
            dictionaries of either, or objects of a class; each may be declared as optional.
        besides: Names of fields that are left as they are.

    Raises:
        OmpqError: A value is of another type (its field is named).
    """
    hints = get_type_hints(type(settings))
    for entry in fields(settings):
        if entry.name in besides:
            continue
        value = getattr(settings, entry.name)
        options = _list_options(hints[entry.name])
        if value is None and type(None) in options:
            continue
        (kind,) = [option for option in options if option is not type(None)]
        # Object's own, since the dataclass is frozen.
        object.__setattr__(settings, entry.name, _settle(entry.name, value, kind))


def _list_options(hint: Any) -> tuple[Any, ...]:
    """List the types of a union; a type alone is the only one."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _settle(name: str, value: Any, hint: Any) -> Any:
    kind = get_origin(hint) or hint
    if kind is bool and isinstance(value, bool | np.bool_):
        return bool(value)
    if kind is int and _is_whole(value):
        return int(value)
    if kind is float and isinstance(value, Real) and not isinstance(value, bool | np.bool_):
        return float(value)
    if kind is tuple and _holds_numbers(value):
        return tuple(map(int, value))
    if kind is Mapping and isinstance(value, Mapping):
        entry = get_args(hint)[1]
        fits = _is_whole if entry is int else _holds_numbers
        if all(isinstance(key, str) and fits(given) for key, given in value.items()):
            return {key: _settle(name, given, entry) for key, given in value.items()}
    if kind not in (bool, int, float, tuple, Mapping) and isinstance(value, kind):
        return value
    wanted = _WANTED.get(kind, f"a {kind.__name__}")
    if kind is Mapping and get_origin(get_args(hint)[1]) is tuple:
        wanted = "a dictionary of names and lists of whole numbers"
    raise OmpqError(f"`{name}` is {value!r}; it must be {wanted}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool | np.bool_)


def _holds_numbers(value: Any) -> bool:
    is_list = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)
    return is_list and all(map(_is_whole, value))
