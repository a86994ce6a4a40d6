"""Values out of JSON: those of a dataclass's types, and no others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from lvmsync.fields import read_fields


@dataclass
class Kind:
    name: str = ""
    count: int | None = None
    share: float = 0.0
    is_on: bool = False
    words: dict[str, str] = field(default_factory=dict)
    rows: tuple[str, ...] = ()


def test_what_fits_is_taken_and_what_is_unknown_left() -> None:
    values = {"name": "x", "count": None, "share": 1, "is_on": True, "words": {"a": "b"}, "rows": ["r"], "other": 7}
    assert read_fields(Kind, values) == {key: value for key, value in values.items() if key != "other"}
    assert read_fields(Kind, {}) == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": 7}, "'name' is not possible"),
        ({"count": True}, "'count' is not possible"),
        ({"count": 1 << 63}, "'count' is not possible: 9223372036854775808"),
        ({"is_on": 1}, "'is_on' is not possible"),
        ({"words": []}, "'words' is not possible"),
        ({"words": {"a": 7}}, "'words' is not text"),
        ({"rows": {}}, "'rows' is not possible"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_fields(Kind, values)


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(UnicodeEncodeError):
        read_fields(Kind, {"name": "\ud800"})
