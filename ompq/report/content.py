"""What the files of a run must hold, lest a page is made of something else; the rest is as it is.

A file is a record of fields. What stands in it in a wrong form is named with its place; a number
that is not finite is one that is not known, None, as is one that is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ompq.errors import OmpqError

# (value, its place) → the value as pages read it. A place is a path such as `groups.0.bits`.
Check = Callable[[Any, str], Any]
# Beyond it arithmetic on a page is no longer finite.
_LARGEST = 1e100
_SHOWN = 40


class _Damaged(Exception):
    """Something stands in a file in a form that no run writes."""


def _refuse(value: object, place: str, wanted: str) -> _Damaged:
    shown = "missing" if value is None else repr(value)[:_SHOWN]
    return _Damaged(f"{place} is {shown}, not {wanted}")


def _number(value: Any, place: str) -> float | int | None:
    """Check a number that may be unknown."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refuse(value, place, "a number")
    # Whole numbers compare with floats exactly, however long.
    return value if -_LARGEST < value < _LARGEST else None


def _positive(value: Any, place: str) -> float | int | None:
    """Check a number above 0 that may be unknown."""
    found = _number(value, place)
    return found if found is not None and found > 0 else None


def _count(value: Any, place: str) -> int | None:
    """Check a whole number from 0 on that may be unknown."""
    found = _number(value, place)
    if found is not None and (isinstance(found, float) or found < 0):
        raise _refuse(value, place, "a whole number from 0 on")
    return None if found is None else int(found)


def _width(value: Any, place: str) -> int:
    """Check a width in bits."""
    if type(value) is not int or not 1 <= value <= 32:
        raise _refuse(value, place, "a width in bits")
    return value


def _any_width(value: Any, place: str) -> int | None:
    return None if value is None else _width(value, place)


def _known(value: Any, place: str) -> float | int:
    """Check a number that must be known."""
    found = _number(value, place)
    if found is None:
        raise _refuse(value, place, "a number")
    return found


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise _refuse(value, place, "text")
    return value


def _any_text(value: Any, place: str) -> str:
    return "" if value is None else _text(value, place)


def _index(value: Any, place: str) -> int:
    """Check a class; −1 where it is not known."""
    if value is None:
        return -1
    if type(value) is not int or abs(value) > _LARGEST:
        raise _refuse(value, place, "a class")
    return value


def _switch(value: Any, place: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise _refuse(value, place, "true or false")
    return bool(value)


def _picture(value: Any, place: str) -> str:
    """Check a picture, which is in the file itself: a page asks for nothing."""
    if not _any_text(value, place).startswith("data:image/"):
        raise _refuse(value, place, "a picture")
    return str(value)


def _list_of(check: Check, least: int = 0) -> Check:
    """Check every entry of a list; what is missing is empty."""

    def check_list(value: Any, place: str) -> list[Any]:
        value = [] if value is None else value
        if not isinstance(value, list) or len(value) < least:
            raise _refuse(value, place, "a list" if not least else f"a list of {least} or more")
        return [check(entry, f"{place}.{index}") for index, entry in enumerate(value)]

    return check_list


def _map_of(check: Check) -> Check:
    """Check every value of a dictionary; what is missing is empty."""

    def check_map(value: Any, place: str) -> dict[str, Any]:
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise _refuse(value, place, "a dictionary")
        return {key: check(entry, f"{place}.{key}") for key, entry in value.items()}

    return check_map


def _record(**checks: Check) -> Check:
    """Check the fields of a dictionary; what is not named here is as it is."""

    def check_record(value: Any, place: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _refuse(value, place, "a dictionary")
        start = f"{place}." if place else ""
        return value | {key: check(value.get(key), start + key) for key, check in checks.items()}

    return check_record


def _or_none(check: Check) -> Check:
    """Check what may be missing as a whole."""
    return lambda value, place: None if value is None else check(value, place)


def _anything(value: Any, place: str) -> Any:
    return value


def _by_width(value: Any, place: str) -> dict[str, float]:
    """Check numbers by width; those that are not known are left out."""
    found = _map_of(_number)(value, place)
    for key in found:
        if not (key.isascii() and key.isdigit() and 1 <= len(key) <= 2):
            raise _refuse(key, place, "a dictionary by width")
    return {key: entry for key, entry in found.items() if entry is not None}


_GROUP = _record(
    layers=_list_of(_text, least=1),
    bits=_width,
    act_bits=_any_width,
    params=_count,
    ops=_count,
    shapes=_list_of(_list_of(_count)),
    prices=_by_width,
)
# What the files have in common.
_ORIGIN: dict[str, Check] = {
    "model_size_mb": _positive,
    "float_size_mb": _positive,
    "bops_g": _number,
    "act_memory_kb": _number,
    "versions": _map_of(_anything),
    "float_layers": _map_of(_anything),
    "parameters": _or_none(_record(quantized=_known, total=_known)),
}
_BLOCK = _record(
    name=_text,
    layers=_list_of(_text),
    kept=_any_text,
    act_kept=_any_text,
    **dict.fromkeys(
        ("loss_before", "loss_after", "act_loss_before", "act_loss_after", "seconds"), _number
    ),
)
_RESULTS = _record(
    **_ORIGIN,
    **dict.fromkeys(("top1_fp32", "top1_before", "top1", "agreement", "seconds"), _number),
    num_eval=_count,
    allocation=_list_of(_GROUP),
    arguments=_map_of(_anything),
    blocks=_list_of(_BLOCK),
    history=_list_of(_record(step=_known, loss=_number, top1=_number)),
    tuning=_or_none(_record(iterations=_number, before=_number, after=_number)),
    # Of earlier versions, beside which there is no allocation.
    groups=_list_of(_list_of(_text, least=1)),
    bits=_list_of(_width),
)
_SIGNAL = dict.fromkeys(("weight", "given", "own", "output", "clipped"), _number)
_FILES: Mapping[str, Check] = {
    "bit_config.json": _record(**_ORIGIN, groups=_list_of(_GROUP), timing=_map_of(_number)),
    "results.json": _RESULTS,
    "sweep.json": _record(
        points=_list_of(
            _record(model_size_mb=_known, value=_known, knee=_switch, bits=_list_of(_width))
        )
    ),
    "compare.json": _record(
        arguments=_map_of(_anything),
        rows=_list_of(
            _record(
                method=_text,
                **dict.fromkeys(("budget_mb", "size_mb", "kl", "agreement", "top1"), _number),
            )
        ),
        correlations=_list_of(
            _record(method=_text, **dict.fromkeys(("rho", "low", "high", "passes"), _number))
        ),
    ),
    "debug.json": _record(
        arguments=_map_of(_anything),
        versions=_map_of(_anything),
        layers=_list_of(
            _record(
                name=_text,
                bits=_width,
                act_bits=_any_width,
                dead_channels=_count,
                hint=_any_text,
                **_SIGNAL,
            )
        ),
    ),
    "changes.json": _record(
        **dict.fromkeys(("num_images", "changed", "repaired", "broken"), _count),
        labelled=_switch,
        class_names=_list_of(_text),
        images=_list_of(_record(label=_index, float=_index, quantized=_index, picture=_picture)),
    ),
}


def read_content(file: Path, kind: str, known: tuple[str, ...]) -> dict[str, Any] | None:
    """Read one of the files of a run.

    Args:
        file: Path of the file.
        kind: What it must hold: the name that the commands give it.
        known: Formats of it that are known.

    Returns:
        Its content; None where there is no such file.

    Raises:
        OmpqError: It cannot be read, is of another format, or damaged (names the place).
    """
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = content["format"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise OmpqError(f"{file} cannot be read, or is no result of a run") from error
    if not isinstance(found, str) or found not in known:
        shown = repr(found)[:_SHOWN] if not isinstance(found, str) else found[:_SHOWN]
        raise OmpqError(f"{file} is of format {shown}; known here: {', '.join(known)}")
    try:
        return dict(_FILES[kind](content, ""))
    except _Damaged as error:
        raise OmpqError(f"{file} is damaged: {error}; run the command again") from error
