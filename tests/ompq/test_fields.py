"""Settings given with values of another type are refused in one line that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from ompq.errors import OmpqError
from ompq.fields import settle_fields


@dataclass(frozen=True)
class Own:
    """A field of every kind."""

    count: int = 1
    share: float = 0.5
    late: int | None = None
    name: str = "a"
    wide: bool = False
    widths: tuple[int, ...] | None = None
    pins: Mapping[str, int] = field(default_factory=dict)
    inner: Own | None = None

    def __post_init__(self) -> None:
        settle_fields(self)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", "1"),
        ("count", 1.0),
        ("count", True),
        ("count", None),
        ("share", "0.5"),
        ("share", True),
        ("share", None),
        ("late", 1.5),
        ("name", 3),
        ("wide", 1),
        ("widths", 4),
        ("widths", "4,8"),
        ("widths", [4, 8.0]),
        ("pins", [("a", 4)]),
        ("pins", {"a": "4"}),
        ("pins", {3: 4}),
        ("inner", "text"),
    ],
)
def test_another_type_is_one_line_with_the_field(name: str, value: Any) -> None:
    with pytest.raises(OmpqError, match=f"^`{name}` is .*; it must be ") as caught:
        Own(**{name: value})
    assert "\n" not in str(caught.value) and repr(value) in str(caught.value)


def test_numbers_of_numpy_become_plain() -> None:
    made = Own(
        count=np.int64(3),  # type: ignore[arg-type]
        share=np.float32(0.25),  # type: ignore[arg-type]
        wide=np.True_,  # type: ignore[arg-type]
        widths=np.array([4, 8]),  # type: ignore[arg-type]
        pins={"a": np.int8(2)},  # type: ignore[dict-item]
    )
    assert made == Own(count=3, share=0.25, wide=True, widths=(4, 8), pins={"a": 2})
    values = (made.count, made.share, made.wide, made.pins["a"])
    assert [type(value) for value in values] == [int, float, bool, int]
    assert type(Own(share=1).share) is float


@pytest.mark.parametrize("late", [None, 0, 7])
def test_what_is_right_stays(late: int | None) -> None:
    made = Own(2, 0.1, late, "b", True, (2, 3), {"x": 4}, Own())
    assert (made.late, made.widths, made.pins) == (late, (2, 3), {"x": 4})
    assert made.inner == Own()
